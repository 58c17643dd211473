"""`inspect`: what is inside a model, layer by layer, and what each technique would do to it."""

import contextlib
import dataclasses
import html
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfopt._base.children import ChildFailedError, run_in_child
from tfopt._base.files import size_of
from tfopt._base.formats import kind_of
from tfopt._base.limits import PARSING_BYTES, PARSING_RATIO, PARSING_SECONDS
from tfopt._keras import keras_api
from tfopt._keras.keras_io import call, inputs_of, ones, takes_length
from tfopt.compress.techniques import TECHNIQUES
from tfopt.errors import InputError, ModelFileError, TfoptError
from tfopt.models.source import load_any
from tfopt.numerics.masks import zero_share
from tfopt.report.format import megabytes
from tfopt.report.html import rows_html
from tfopt.runtime import Predictor
from tfopt.tflite.file import read_tflite
from tfopt.tflite.litert_lm_file import read_litert_lm


@dataclasses.dataclass(frozen=True)
class LayerInfo:
    """One layer, or one weight of a TFLite file.

    Attributes:
        name: path of the layer in the model.
        kind: class of the layer, or the operators that read the weight.
        parameters: elements of its own weights.
        bytes: of its own weights as stored.
        bits: mean bits per element.
        sparsity: share of zeros in its matrices, or None without any.
        multiply_adds: for one row, or None where it cannot be told.
        time_share: share of the time of one eager call, or None where it was not timed.
        techniques: technique -> what it would do to the layer, or why it does nothing.
    """

    name: str
    kind: str
    parameters: int
    bytes: int
    bits: float
    sparsity: float | None = None
    multiply_adds: int | None = None
    time_share: float | None = None
    techniques: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, repr=False)
class Inspection:
    """What `inspect` found.

    Attributes:
        name: name of the model or artifact.
        format: "tf_keras", "keras", "saved_model", "tflite" or "litertlm".
        layers: those with weights.
        parameters: of the whole model.
        bytes: of its weights, or of the artifact.
        multiply_adds: for one row, summed over the layers where it can be told, or None.
    """

    name: str
    format: str
    layers: list[LayerInfo]
    parameters: int
    bytes: int
    multiply_adds: int | None = None

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Names of columns, and a row of words for each layer."""
        head = ["layer", "kind", "parameters", "bytes", "bits", "zeros", "multiply-adds", "time", "techniques"]
        rows = [
            [
                x.name, x.kind, f"{x.parameters:,}", f"{x.bytes:,}", f"{x.bits:.3g}",
                "" if x.sparsity is None else f"{x.sparsity:.1%}",
                "" if x.multiply_adds is None else f"{x.multiply_adds:,}",
                "" if x.time_share is None else f"{x.time_share:.1%}",
                "; ".join(f"{name}: {what}" for name, what in x.techniques.items()),
            ]
            for x in self.layers
        ]  # fmt: skip
        return head, rows

    def summary(self) -> str:
        """The sums over all layers."""
        work = "" if self.multiply_adds is None else f", {self.multiply_adds:,} multiply-adds per row"
        return f"{self.name} ({self.format}): {self.parameters:,} parameters, {megabytes(self.bytes)}{work}"

    def __repr__(self) -> str:
        return f"Inspection({self.summary()}, {len(self.layers)} layers with weights)"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self.summary())}</p>{rows_html(*self.table())}"


def inspect(model: Any, *, length: int = 128) -> Inspection:
    """Looks into a built Keras model of either generation; the model is not changed.

    Args:
        model: the model.
        length: sequence length to count and time with, where the model takes any; halved until the model
            takes it.

    Raises:
        InputError: not a built Keras model.
    """
    keras_api.check_model(model)
    calls = _observe(model, length)
    total_time = sum(seconds for _, seconds in calls.values()) or None
    explained = _explained(model)
    by_layer: dict[str, list[Any]] = {}
    for weight in keras_api.weights(model):
        by_layer.setdefault(weight.layer_path, []).append(weight)
    layers = []
    for path, owned in by_layer.items():
        arrays = {w.path: keras_api.to_numpy(w.variable) for w in owned}
        shape, seconds = calls.get(id(owned[0].layer), (None, None))
        layers.append(LayerInfo(
            path, type(owned[0].layer).__name__, *_totals(list(arrays.values())),
            sparsity=_sparsity(list(arrays.values())),
            multiply_adds=multiply_adds(owned[0].layer, owned, shape),
            time_share=seconds / total_time if total_time and seconds is not None else None,
            techniques=_techniques(arrays, explained),
        ))  # fmt: skip
    counted = [layer.multiply_adds for layer in layers if layer.multiply_adds is not None]
    return Inspection(
        model.name, keras_api.generation_of(model), layers, parameters=sum(layer.parameters for layer in layers),
        bytes=sum(layer.bytes for layer in layers), multiply_adds=sum(counted) if counted else None,
    )  # fmt: skip


def inspect_path(
    path: str | Path, *, length: int = 128, trust: bool = False, imports: Sequence[str] = ()
) -> Inspection:
    """Looks into a Keras file, a Hugging Face folder, a SavedModel, a TFLite or a LiteRT-LM file.

    Args:
        path: of any of them.
        length: sequence length, where the model takes any.
        trust: run code that it holds or names.
        imports: modules or files that define its classes.
    """
    path, kind = Path(path), kind_of(path)
    if kind == "tflite":
        return _inspect_tflite(path)
    if kind == "litertlm":
        return _inspect_litert_lm(path)
    if kind == "saved_model":
        return _inspect_saved_model(path, trust=trust)
    if path.is_dir() and kind not in ("hugging_face", "keras_hub", "llama2c"):
        raise InputError(f"{path} is neither a model nor an artifact")
    return inspect(load_any(path, trust=trust, imports=imports), length=length)


def inspect_apart(
    path: str | Path, *, length: int = 128, trust: bool = False, imports: Sequence[str] = ()
) -> Inspection:
    """As `inspect_path`, in a process of its own with limits on memory and time.

    HDF5, TensorFlow, LiteRT and tokenizers parse their formats there: what a made-up file does to one of them ends
    that process.

    Raises:
        ModelFileError: the file ended it.
    """
    size = size_of(path) if Path(path).exists() else 0
    try:
        found: Inspection = run_in_child(
            _inspect_alone,
            str(path),
            length,
            trust,
            tuple(imports),
            memory=PARSING_BYTES + PARSING_RATIO * size,
            timeout_s=PARSING_SECONDS,
        )
    except ChildFailedError as error:
        raise ModelFileError(f"{path} cannot be looked into: {error}") from error
    return found


def _inspect_alone(path: str, length: int, trust: bool, imports: tuple[str, ...]) -> Inspection:
    return inspect_path(path, length=length, trust=trust, imports=imports)


def _inspect_saved_model(path: Path, trust: bool) -> Inspection:
    weights = Predictor.load(path, trust=trust).weights()
    layers = [
        LayerInfo(
            w.name, "variable", w.array.size, bytes=w.array.nbytes, bits=w.bits, sparsity=_sparsity([w.array])
        )
        for w in weights
    ]
    parameters = sum(w.array.size for w in weights)
    return Inspection(path.name, "saved_model", layers, parameters=parameters, bytes=size_of(path))


def _inspect_tflite(path: Path) -> Inspection:
    layers = [
        LayerInfo(
            c.name, "+".join(sorted(c.readers)), int(np.prod(c.shape)), bytes=int(np.prod(c.shape)) * c.bits //
            8, bits=c.bits, sparsity=_sparsity([c.data]) if c.is_matrix else None, techniques={"dynamic_int8":
            "done" if c.bits <= 8 else "left in float"} if c.is_kernel else {},
        )
        for c in read_tflite(path).constants
        if c.dtype.startswith(("float", "int2", "int4", "int8", "int16")) and np.prod(c.shape) > 1
    ]  # fmt: skip
    return Inspection(
        path.name, "tflite", layers, parameters=sum(x.parameters for x in layers), bytes=size_of(path)
    )


def _inspect_litert_lm(path: Path) -> Inspection:
    with tempfile.TemporaryDirectory(prefix="tfopt-") as folder:
        inner = _inspect_tflite(read_litert_lm(path).decoder(Path(folder, "model.tflite")))
    return dataclasses.replace(inner, name=path.name, format="litertlm", bytes=size_of(path))


def multiply_adds(layer: Any, weights: list[Any], output_shape: tuple[int, ...] | None) -> int | None:
    """Multiply-adds of one row through a layer's kernels; None for layers that are not counted."""
    kernel = next((w for w in weights if w.name in ("kernel", "depthwise_kernel")), None)
    if kernel is None or output_shape is None:
        return None
    shape = [int(d) for d in kernel.variable.shape]
    kind = type(layer).__name__
    if kind == "Dense":
        return math.prod(output_shape[1:]) * shape[0]
    if kind == "EinsumDense":
        operands, _, result = layer.equation.replace(" ", "").partition("->")
        summed = [d for d, label in zip(shape, operands.split(",")[1], strict=True) if label not in result]
        return math.prod(output_shape[1:]) * math.prod(summed)
    if kind in ("Conv1D", "Conv2D", "Conv3D"):
        return math.prod(output_shape[1:]) * math.prod(shape[:-1])
    if kind in ("DepthwiseConv1D", "DepthwiseConv2D"):
        return math.prod(output_shape[1:]) * math.prod(shape[:-2])
    return None


def _observe(model: Any, length: int) -> dict[int, tuple[tuple[int, ...] | None, float]]:
    """Output shape and seconds of every leaf layer in one eager call, by the layer's id.

    Each layer's `call` is replaced on the instance for the time of two calls and then put back.
    """
    try:
        inputs = inputs_of(model)
    except InputError:
        return {}  # a subclassed model that does not tell its inputs cannot be called from here
    seen: dict[int, tuple[tuple[int, ...] | None, float]] = {}
    leaves = [layer for _, layer in keras_api.walk(model) if not keras_api.sublayers(layer)]
    while length > 1 and not takes_length(model, inputs, length):  # the first call also builds caches
        length //= 2
    named = {name: ones(spec) for name, spec in inputs.with_sizes(1, length).items()}
    with _watched(leaves, seen):
        call(model, inputs, named)
    return seen


class _watched:
    """Times every call of the layers while it is entered."""

    def __init__(self, layers: list[Any], seen: dict[int, tuple[tuple[int, ...] | None, float]]) -> None:
        self._layers, self._seen = layers, seen

    def __enter__(self) -> None:
        # Operation layers of tf_keras keep their `call` on the instance, others have only the class's.
        self._before = [(layer, layer.__dict__.get("call")) for layer in self._layers]
        for layer in self._layers:
            object.__setattr__(layer, "call", self._timed(layer, layer.call))

    def __exit__(self, *exc: object) -> None:
        for layer, own in self._before:
            if own is None:
                object.__delattr__(layer, "call")
            else:
                object.__setattr__(layer, "call", own)

    def _timed(self, layer: Any, original: Any) -> Any:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            result = original(*args, **kwargs)
            seconds = time.perf_counter() - started
            shape = tuple(result.shape) if hasattr(result, "shape") else None
            before = self._seen.get(id(layer), (None, 0.0))[1]
            self._seen[id(layer)] = (shape, before + seconds)
            return result

        return timed


def _totals(arrays: list[np.ndarray]) -> tuple[int, int, float]:
    elements, stored = sum(a.size for a in arrays), sum(a.nbytes for a in arrays)
    return elements, stored, stored * 8 / elements if elements else 0.0


def _sparsity(arrays: list[np.ndarray]) -> float | None:
    return zero_share([a for a in arrays if a.ndim >= 2])


def _explained(model: Any) -> dict[str, dict[str, str]]:
    """Technique -> path of a weight -> what it would do to it, or why it does nothing."""
    found = {}
    for technique in TECHNIQUES:
        with contextlib.suppress(TfoptError):  # of a model that it does not take at all there is nothing to say
            found[technique.name] = technique.load().explain(model)
    return found


def _techniques(arrays: dict[str, np.ndarray], explained: dict[str, dict[str, str]]) -> dict[str, str]:
    if not any(a.ndim >= 2 for a in arrays.values()):
        return {"prune": "no matrix", "dynamic_int8": "no matrix"}
    found = {}
    for name, reasons in explained.items():
        said = [f"{path.rpartition('/')[2]}: {reasons[path]}" for path in arrays if path in reasons]
        if said:
            found[name] = "; ".join(said)
    small = all(a.size < 1024 for a in arrays.values() if a.ndim >= 2)
    return {**found, "dynamic_int8": "stays float, too small" if small else "int8 weights"}
