"""What is known of a quantized model after training or calibration: its grids and ranges.

The record goes with the model object and, as one more member of the archive, with its `.keras` file; Keras
itself ignores it.
"""

import dataclasses
import io
import json
import zipfile
from typing import Any

import numpy as np

from tfopt._base.archives import check_sizes
from tfopt._base.foreign import parse_json
from tfopt._keras import extras, keras_api
from tfopt._keras.selection import Skipped
from tfopt.errors import ModelFileError
from tfopt.numerics.grids import Layout, WeightSpec
from tfopt.quantization.config import QuantizeConfig

_ATTRIBUTE = "_tfopt_quantization"


@dataclasses.dataclass(frozen=True)
class Grid:
    """The grid of one weight, as a matrix of (outputs, inputs): the order in which files keep weights.

    Attributes:
        path: the weight.
        spec: bits, granularity, symmetry.
        integers: int8 of shape (outputs, inputs).
        scale: float32 of shape (outputs or 1, blocks or 1).
        zero: zero points, like `scale`.
        source: the float weight before rounding, (outputs, inputs); the weight itself after training.
        note: why the grid is not the one that was asked for, or "".
    """

    path: str
    spec: WeightSpec
    integers: np.ndarray = dataclasses.field(repr=False)
    scale: np.ndarray = dataclasses.field(repr=False)
    zero: np.ndarray = dataclasses.field(repr=False)
    source: np.ndarray = dataclasses.field(repr=False)
    note: str = ""

    @property
    def values(self) -> np.ndarray:
        """The float values of the integers."""
        width = self.integers.shape[1] // self.scale.shape[1]
        spread = [np.repeat(a, width, 1) if a.shape[1] > 1 else a for a in (self.scale, self.zero)]
        return (self.integers.astype(np.float32) - spread[1]) * spread[0]


@dataclasses.dataclass(frozen=True)
class Record:
    """What was decided for a whole model.

    Attributes:
        config: what was asked for.
        grids: grids by path of the weight.
        ranges: lowest and highest value of activations by point.
        skipped: matrices that stayed in float, with the reason.
        trained: whether the model's weights lie on these grids already.
    """

    config: QuantizeConfig
    grids: dict[str, Grid]
    ranges: dict[str, tuple[float, float]]
    skipped: tuple[Skipped, ...]
    trained: bool


def as_matrix(array: np.ndarray, layout: Layout) -> np.ndarray:
    """A weight as (outputs, inputs)."""
    outputs = [axis for axis in range(array.ndim) if axis not in layout.inputs]
    moved = np.transpose(array, [*outputs, *layout.inputs])
    return np.ascontiguousarray(moved).reshape(int(np.prod([array.shape[a] for a in outputs], dtype=int)), -1)


def from_matrix(matrix: np.ndarray, shape: tuple[int, ...], layout: Layout) -> np.ndarray:
    """Undoes `as_matrix`."""
    outputs = [axis for axis in range(len(shape)) if axis not in layout.inputs]
    order = [*outputs, *layout.inputs]
    return np.ascontiguousarray(np.transpose(matrix.reshape([shape[a] for a in order]), np.argsort(order)))


def record_of(model: Any) -> Record | None:
    """The record of a model that was quantized, in this process or before it was saved, or None."""
    record = getattr(model, _ATTRIBUTE, None)
    content = extras.of(model).get(_MEMBER)
    if record is None and content is not None:
        record = from_bytes(content, model)
        object.__setattr__(model, _ATTRIBUTE, record)
    return record


def attach(model: Any, record: Record) -> None:
    """Puts the record on the model; `keras_api.save_model` writes it with the model."""
    object.__setattr__(model, _ATTRIBUTE, record)
    members = extras.of(model)
    extras.put(model, {**members, _MEMBER: to_bytes(record)})


def detach(model: Any) -> None:
    """Takes the record off a model whose weights leave their grids."""
    if _ATTRIBUTE in vars(model):
        object.__delattr__(model, _ATTRIBUTE)
    members = extras.of(model)
    if _MEMBER in members:
        extras.put(model, {n: m for n, m in members.items() if n != _MEMBER})


_MEMBER = "tfopt_quantization.npz"


def to_bytes(record: Record) -> bytes:
    """The record as a NumPy archive; integers are left out where they follow from weights and scales."""
    config = dataclasses.asdict(record.config)
    for key in ("include", "exclude"):  # they have done their work, and may be classes
        config.pop(key)
    head: dict[str, Any] = {
        "config": config,
        "ranges": record.ranges,
        "skipped": [dataclasses.astuple(s) for s in record.skipped],
        "grids": [(g.path, list(g.spec), g.note) for g in record.grids.values()],
    }
    arrays: dict[str, Any] = {}
    for index, grid in enumerate(record.grids.values()):
        arrays[f"scale{index}"] = grid.scale
        arrays[f"zero{index}"] = grid.zero
    buffer = io.BytesIO()
    np.savez_compressed(buffer, head=np.frombuffer(json.dumps(head).encode(), np.uint8), **arrays)
    return buffer.getvalue()


def from_bytes(content: bytes, model: Any) -> Record:
    """Reads what `to_bytes` wrote; the integers come from the model's weights, which lie on the grid.

    Raises:
        ModelFileError: it is damaged, or unpacks to more than records do.
    """
    where = f"what model {model.name!r} says of its quantization"
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as packed:
            check_sizes(packed, len(content), where)
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            return _parsed(archive, model)
    except ModelFileError:
        raise
    except Exception as error:  # NumPy, its header's parser and zlib each have errors of their own
        raise ModelFileError(f"{where} is damaged: {type(error).__name__}: {error}") from error


def _parsed(archive: Any, model: Any) -> Record:
    from tfopt.quantization.kinds import layouts

    head = parse_json(archive["head"].tobytes(), "its head", ModelFileError)
    found = {w.path: w for w in keras_api.weights(model)}
    grids = {}
    for index, (path, spec, note) in enumerate(head["grids"]):
        if path not in found:
            continue
        weight = found[path]
        source = as_matrix(keras_api.to_numpy(weight.variable), layouts(weight.layer)[weight.name])
        scale, zero = archive[f"scale{index}"], archive[f"zero{index}"]
        if not np.isfinite(scale).all() or not (scale > 0).all() or source.shape[1] % max(scale.shape[1], 1):
            raise ValueError(f"scales of {path}")
        grids[path] = grid_of(path, WeightSpec(*spec), source, scale=scale, zero=zero, note=str(note))
    ranges = {str(k): (float(v[0]), float(v[1])) for k, v in head["ranges"].items()}
    if not np.isfinite(list(ranges.values())).all():
        raise ValueError("ranges that are not finite")
    skipped = tuple(Skipped(str(path), str(reason)) for path, reason in head["skipped"])
    return Record(QuantizeConfig(**head["config"]), grids, ranges, skipped=skipped, trained=True)


def grid_of(
    path: str, spec: WeightSpec, source: np.ndarray, scale: np.ndarray, zero: np.ndarray, note: str = ""
) -> Grid:
    """The grid of a matrix whose scales are known: every value goes to the nearest integer."""
    width = source.shape[1] // scale.shape[1]
    spread = [np.repeat(a, width, 1) if a.shape[1] > 1 else a for a in (scale, zero)]
    integers = np.clip(np.rint(source / spread[0] + spread[1]), spec.smallest, spec.largest).astype(np.int8)
    return Grid(path, spec, integers, scale=scale, zero=zero, source=source, note=note)
