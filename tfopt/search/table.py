"""The sensitivity table: what each option alone does to the outputs. Measured once, kept on disk, gone on with."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfopt._base.files import write_json
from tfopt._base.foreign import read_json
from tfopt._keras import keras_api
from tfopt._keras.keras_io import call, check_samples, inputs_of
from tfopt.compress.base import Option
from tfopt.errors import InputError
from tfopt.numerics.low_rank import decompose
from tfopt.quantization import QuantizeConfig
from tfopt.quantization.calibration import check_varied
from tfopt.quantization.plan import plan_weights
from tfopt.quantization.weights import on_grids, round_to_nearest
from tfopt.search.options import FEW_BITS
from tfopt.structure.blocks import blocks_of
from tfopt.structure.cut import Kept, cut, pooled_early
from tfopt.structure.early_pooling import early_pooling
from tfopt.structure.factors import factorable
from tfopt.structure.groups import Structure
from tfopt.structure.importance import importance
from tfopt.structure.masked import clear

_SAVE_EVERY = 10


def sensitivity(
    model: Any,
    structure: Structure,
    options: Sequence[Option],
    samples: Mapping[str, np.ndarray],
    data: Any,
    path: Path,
    log: Callable[[str], None],
) -> dict[str, float]:
    """Loss of every option by its key: mean squared change of the first output, relative to its variance.

    Args:
        model: as it was in the end.
        structure: of the model.
        options: those of the model.
        samples: inputs by name.
        data: batches of (inputs, labels) for the importance of units.
        path: JSON file of the table; rows that are there for this model and these samples are not measured again.
        log: told how far it is.

    Raises:
        InputError: samples that do not fit.
    """
    inputs = inputs_of(model)
    given = check_samples(inputs, dict(samples))
    check_varied(given)
    fingerprint = _fingerprint(model, given)
    rows = _read(path, fingerprint)
    missing = [option for option in options if option.key not in rows]
    if not missing:
        return rows
    log(f"sensitivity of {len(missing)} options ({len(options) - len(missing)} are known)")
    changes = _Changes(model, structure, data)

    def outputs(one: Any) -> np.ndarray:
        return np.asarray(next(iter(call(one, inputs_of(one), given).values())), np.float64)

    expected = outputs(model)
    variance = max(float(expected.var()), 1e-12)
    for count, option in enumerate(missing, 1):
        with changes.made(option) as changed:
            rows[option.key] = float(((outputs(changed) - expected) ** 2).mean()) / variance
        if count % _SAVE_EVERY == 0 or count == len(missing):
            write_json(path, {"fingerprint": fingerprint, "samples": len(next(iter(given.values()))), "rows": rows})
    return rows


def _read(path: Path, fingerprint: str) -> dict[str, float]:
    if not path.exists():
        return {}
    try:
        found = read_json(path, "sensitivity table")
        return dict(found["rows"]) if found["fingerprint"] == fingerprint else {}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no sensitivity table: {error}; remove it to measure anew") from error


def _fingerprint(model: Any, samples: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for weight in keras_api.weights(model):
        digest.update(weight.path.encode() + keras_api.to_numpy(weight.variable).tobytes())
    for name in sorted(samples):
        digest.update(name.encode() + np.ascontiguousarray(samples[name]).tobytes())
    return digest.hexdigest()


class _Changes:
    """Puts an option into a model and takes it out again."""

    def __init__(self, model: Any, structure: Structure, data: Any) -> None:
        self._model, self._structure = model, structure
        self._weights = {w.path: w for w in keras_api.weights(model)}
        self._scores = importance(model, structure, data)
        self._groups, self._blocks = {g.name: g for g in structure.groups}, blocks_of(model, structure)
        self._planned = {p.path: p for p in plan_weights(model, QuantizeConfig(weight_bits=FEW_BITS)).weights}

    @contextlib.contextmanager
    def made(self, option: Option) -> Iterator[Any]:
        if option.kind == "layer":
            yield cut(self._model, self._structure, Kept({}, (self._blocks[int(option.place)],)))
            return
        if option.kind == "pooling":
            yield pooled_early(self._model, early_pooling(self._model, self._structure))
            return
        if option.kind == "width":  # zeros would count in the norms
            kept = np.sort(self._ranked(option)[1])
            yield cut(self._model, self._structure, Kept({option.place: kept}))
            return
        if option.kind == "bits":
            planned = self._planned[option.place]
            value = keras_api.to_numpy(planned.weight.variable).astype(np.float32)
            with on_grids(self._model, {option.place: round_to_nearest(planned, value, search_clip=True)}):
                yield self._model
            return
        values = self._values(option)
        before = {path: keras_api.to_numpy(self._weights[path].variable).copy() for path in values}
        try:
            self._assign(values)
            yield self._model
        finally:
            self._assign(before)

    def _assign(self, values: Mapping[str, np.ndarray]) -> None:
        for path, value in values.items():
            self._weights[path].variable.assign(value)

    def _values(self, option: Option) -> dict[str, np.ndarray]:
        if option.kind in ("heads", "neurons", "channels"):
            return self._masked(option)
        weight = self._weights[option.place]
        value = keras_api.to_numpy(weight.variable).astype(np.float32)
        if option.kind == "rank":
            found = factorable(weight.layer_path, weight.layer)
            assert not isinstance(found, str)
            left, right = decompose(found.matrix).of_rank(int(option.value))
            return {option.place: (left @ right).reshape(value.shape)}
        return {option.place: np.where(np.abs(value) < np.quantile(np.abs(value), option.value), 0, value)}

    def _ranked(self, option: Option) -> tuple[np.ndarray, np.ndarray]:
        """The units that go, and those that stay."""
        order, group = np.argsort(self._scores[option.place], kind="stable"), self._groups[option.place]
        return order[: group.count(option.value)], order[group.count(option.value) :]

    def _masked(self, option: Option) -> dict[str, np.ndarray]:
        group, gone = self._groups[option.place], self._ranked(option)[0]
        places = [s for s in group.slices if "moving_" not in s.path]
        values = {s.path: keras_api.to_numpy(self._weights[s.path].variable).copy() for s in places}
        for place in places:
            clear(values[place.path], place, group.units, gone=gone)
        return values
