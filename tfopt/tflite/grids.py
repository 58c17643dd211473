"""Writes the grids of a quantized model into a float TFLite file: the same integers, not a second rounding."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfopt.numerics.grids import WeightSpec
from tfopt.quantization.record import Grid, Record
from tfopt.tflite import flatbuffer as fb
from tfopt.tflite.layer_bits import LayerBits
from tfopt.tflite.ranges import strip_ranges

_TOLERANCE = 1e-5
# Smaller matrices stay in float where no grid was trained for them: nothing is gained by narrowing them.
SMALLEST_QUANTIZED = 1024
# Operators with a constant weight: its position among the inputs, the axis of its output channels, and the
# version from which the operator takes integer weights with float activations.
PRODUCTS = {
    fb.Op.FULLY_CONNECTED: (1, 0, 9), fb.Op.CONV_2D: (1, 0, 5), fb.Op.DEPTHWISE_CONV_2D: (1, 3, 6),
    fb.Op.TRANSPOSE_CONV: (1, 0, 3), fb.Op.EMBEDDING_LOOKUP: (1, 0, 4), fb.Op.GATHER: (0, 0, 5),
}  # fmt: skip
# Without integer kernels for float activations: their weights are widened before the product.
_WIDENED = {fb.Op.TRANSPOSE_CONV}
# Widen the rows that they return by themselves.
LOOKUPS = {fb.Op.EMBEDDING_LOOKUP, fb.Op.GATHER}
# Takes two weights per byte; others store grids of few bits in whole bytes.
_TAKES_INT4 = {fb.Op.FULLY_CONNECTED, fb.Op.CONV_2D, fb.Op.EMBEDDING_LOOKUP}


@dataclasses.dataclass(frozen=True)
class Found:
    """A constant weight of a file: its buffer, operator and values as a matrix of (outputs, inputs).

    Signatures share buffers, under a name of each one's own; `name` is the first of `names`.
    """

    buffer: int
    operator: int
    names: tuple[str, ...]
    axis: int
    shape: tuple[int, ...]
    matrix: np.ndarray = dataclasses.field(repr=False)

    @property
    def name(self) -> str:
        return self.names[0]


@dataclasses.dataclass(frozen=True)
class Matched:
    """A weight of a file with the grid that belongs to it, scaled as the converter scaled the weight."""

    found: Found
    grid: Grid


def find_weights(model: Any) -> list[Found]:
    """Every constant float weight that an operator multiplies by or looks up in, each buffer once."""
    weights: dict[int, Found] = {}
    names: dict[int, list[str]] = {}
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            names.setdefault(tensor.buffer, []).append(fb.name(tensor))
    for graph in model.subgraphs:
        for op in graph.operators:
            kind = fb.code(model, op)
            if kind not in PRODUCTS:
                continue
            place, axis, _ = PRODUCTS[kind]
            tensor = graph.tensors[int(op.inputs[place])]
            values = fb.floats(model, tensor)
            if values is None or values.ndim < 2 or tensor.buffer in weights:
                continue
            matrix = np.ascontiguousarray(np.moveaxis(values, axis, 0)).reshape(values.shape[axis], -1)
            weights[tensor.buffer] = Found(
                tensor.buffer, kind, tuple(names[tensor.buffer]), axis=axis, shape=values.shape, matrix=matrix
            )
    return list(weights.values())


def match(found: list[Found], grids: dict[str, Grid]) -> tuple[list[Matched], list[Found]]:
    """Finds for each weight of a file the grid with which it agrees up to one factor per output.

    Converters fold batch norms and attention scales into weights; a grid with one scale per output follows.

    Returns:
        What was matched, and the weights without a grid.
    """
    matched, others = [], []
    for weight in found:
        pairs = ((grid, _factors(weight.matrix, grid.source)) for grid in grids.values())
        fits = ((g, f) for g, f in pairs if f is not None and (g.spec.symmetric or (f >= 0).all()))
        hit = next(fits, None)
        if hit is None:
            others.append(weight)
        else:
            matched.append(Matched(weight, _scaled(*hit)))
    return matched, others


def _factors(matrix: np.ndarray, source: np.ndarray) -> np.ndarray | None:
    """One factor per row that makes `source` equal to `matrix`, or None."""
    if matrix.shape != source.shape:
        return None
    for rows in (slice(0, 4), slice(None)):  # most candidates differ at once
        found, known = matrix[rows], source[rows]
        largest = np.abs(known).argmax(1)[:, None]
        top = np.take_along_axis(known, largest, 1)
        factors = np.where(top == 0, 1.0, np.take_along_axis(found, largest, 1) / np.where(top == 0, 1, top))
        reach = np.abs(found).max(1, keepdims=True)
        if (np.abs(found - factors * known) > _TOLERANCE * np.maximum(reach, 1e-12)).any():
            return None
    return factors.astype(np.float32)


def _scaled(grid: Grid, factors: np.ndarray) -> Grid:
    """The grid of a weight that was multiplied by a factor per output."""
    if (factors == 1).all():
        return grid
    factors = np.where(factors == 0, 1.0, factors)
    sign = np.sign(factors).astype(np.int8)
    equal = np.ptp(factors) <= _TOLERANCE * np.abs(factors).max()
    if grid.scale.shape[0] == 1 and not equal:  # one scale per tensor becomes one per output
        grid = dataclasses.replace(grid, spec=grid.spec._replace(granularity="channel"))
    scale = grid.scale * np.abs(factors[:1] if equal else factors).astype(np.float32)
    zero = np.broadcast_to(grid.zero, scale.shape)
    return dataclasses.replace(
        grid, integers=grid.integers * sign, scale=scale, zero=zero, source=grid.source * factors
    )


def write_grids(
    content: bytes,
    record: Record,
    rows: Callable[[Any], None],
    fallback: Callable[[Found], Grid | None],
) -> tuple[bytes, list[Matched], list[LayerBits]]:
    """Writes integer weights where activations stay in float or are quantized while running.

    Args:
        content: a float TFLite file of the model.
        record: its grids.
        rows: rewrites lookups, see `lookups.look_up_rows`.
        fallback: the grid of a weight that matches none of the record's, or None to leave it in float.

    Returns:
        The new file, what was written, and the bits of every matrix of the model.
    """
    model = fb.read(content)
    strip_ranges(model)
    rows(model)
    matched, others = match(find_weights(model), record.grids)
    matched += [Matched(w, grid) for w in others for grid in [fallback(w)] if grid is not None]
    widened = {m.found.buffer for m in matched if _needs_widening(m, record.config.activations == "none")}
    for item in matched:
        _write_one(model, item)
    for graph in model.subgraphs:
        widen(model, graph, widened)
        for op in graph.operators:
            kind = fb.code(model, op)
            if kind not in PRODUCTS:
                continue
            place, _, version = PRODUCTS[kind]
            if graph.tensors[int(op.inputs[place])].type in (fb.INT8, fb.INT4):
                fb.opcode(model, kind, version)
                if hasattr(op.builtinOptions, "asymmetricQuantizeInputs"):
                    op.builtinOptions.asymmetricQuantizeInputs = not record.config.activation_symmetric
    return fb.write(model), matched, layer_bits(record, matched)


def _needs_widening(item: Matched, weights_only: bool) -> bool:
    return weights_only or item.found.operator in _WIDENED


def _write_one(model: Any, item: Matched) -> None:
    narrow = stored_bits(item) == 4
    integers = np.moveaxis(
        item.grid.integers.reshape([item.found.shape[item.found.axis], *_without(item.found)]), 0, item.found.axis
    )
    model.buffers[item.found.buffer].data = pack_int4(integers) if narrow else integers.ravel().view(np.uint8)
    half = item.grid.scale.astype(np.float16)  # exact: scales of blocks came from bfloat16
    scales = fb.add_buffer(model, half) if isinstance(item.grid.spec.granularity, int) else 0
    for graph in model.subgraphs:
        for tensor in [t for t in graph.tensors if t.buffer == item.found.buffer]:
            tensor.type = fb.INT4 if narrow else fb.INT8
            tensor.quantization = _parameters(graph, item, scales)


def _without(found: Found) -> list[int]:
    return [size for axis, size in enumerate(found.shape) if axis != found.axis]


def pack_int4(integers: np.ndarray) -> np.ndarray:
    """Two integers of -8 to 7 per byte, the first in the low half."""
    flat = integers.ravel().astype(np.int8)
    flat = np.append(flat, np.int8(0)) if flat.size % 2 else flat
    return ((flat[0::2] & 0xF) | ((flat[1::2] & 0xF) << 4)).astype(np.uint8)


def _parameters(graph: Any, item: Matched, scales: int) -> Any:
    new = schema.QuantizationParametersT()
    grid = item.grid
    if isinstance(grid.spec.granularity, int):
        new.detailsType = schema.QuantizationDetails.BlockwiseQuantization
        new.details = schema.BlockwiseQuantizationT()
        name = f"{item.found.name}/scales"
        new.details.scales = fb.add_tensor(graph, name, grid.scale.shape, dtype=fb.FLOAT16, buffer=scales)
        new.details.zeroPoints, new.details.blockSize = -1, grid.spec.granularity
        new.quantizedDimension = 0
        return new
    new.scale = grid.scale.ravel().astype(np.float32)
    new.zeroPoint = grid.zero.ravel().astype(np.int64)
    new.quantizedDimension = item.found.axis if len(new.scale) > 1 else 0
    return new


def widen(model: Any, graph: Any, buffers: set[int]) -> None:
    """Puts DEQUANTIZE between narrow weights and operators that multiply in float."""
    wide: dict[int, int] = {}
    before = []
    for op in graph.operators:
        kind = fb.code(model, op)
        place = PRODUCTS.get(kind, (None,))[0]
        if place is None or kind in LOOKUPS or graph.tensors[int(op.inputs[place])].buffer not in buffers:
            continue
        index = int(op.inputs[place])
        if index not in wide:
            tensor = graph.tensors[index]
            wide[index] = fb.add_tensor(graph, f"{fb.name(tensor)}/wide", tensor.shape, dtype=fb.FLOAT32)
            before.append(fb.operator(model, fb.Op.DEQUANTIZE, 6, inputs=[index], outputs=[wide[index]]))
        op.inputs = [wide[index] if i == place else int(v) for i, v in enumerate(op.inputs)]
    graph.operators = [*before, *graph.operators]


def layer_bits(record: Record, matched: list[Matched]) -> list[LayerBits]:
    """The bits of every matrix of the model in the file, with the reason where it stayed in float."""
    written = {m.grid.path: m for m in matched}
    rows = []
    for path, grid in record.grids.items():
        item = written.pop(path, None)
        if item is None:
            rows.append(LayerBits(path, 32, "", reason="the converter folded it into float constants"))
        else:
            rows.append(_row(path, item, grid.note))
    rows += [_row(path, item, "") for path, item in written.items()]
    return rows + [LayerBits(s.path, 32, "", reason=s.reason) for s in record.skipped]


def _row(path: str, item: Matched, note: str) -> LayerBits:
    grain = item.grid.spec.granularity
    return LayerBits(path, item.grid.spec.bits, f"block {grain}" if isinstance(grain, int) else grain, reason=note)


def stored_bits(item: Matched) -> int:
    """Bits that each weight takes in the file."""
    # A lookup takes rows of 4 bits by whole bytes: those of an odd width come out wrong, without an error.
    odd = item.found.operator in LOOKUPS and item.found.shape[-1] % 2 == 1
    return 4 if item.grid.spec.bits <= 4 and item.found.operator in _TAKES_INT4 and not odd else 8


def nearest_grid(found: Found, bits: int, path: str) -> Grid:
    """A grid by rounding to nearest, one scale per output, for a weight that no known layer owns."""
    spec = WeightSpec(bits)
    reach = np.abs(found.matrix).max(1, keepdims=True)
    scale = np.where(reach > 0, reach / spec.largest, 1).astype(np.float32)
    integers = np.clip(np.rint(found.matrix / scale), spec.smallest, spec.largest).astype(np.int8)
    return Grid(path, spec, integers, scale=scale, zero=np.zeros_like(scale), source=found.matrix)


def closest(found: Found, grids: dict[str, Grid]) -> str | None:
    """Which weight of the model a weight of the file was made from, where factors were folded into its inputs."""

    def likeness(grid: Grid) -> float:
        lengths = np.linalg.norm(found.matrix) * np.linalg.norm(grid.source)
        return float(np.vdot(found.matrix, grid.source) / max(lengths, 1e-30))

    likely = {path: likeness(grid) for path, grid in grids.items() if grid.source.shape == found.matrix.shape}
    best = max(likely, key=lambda path: likely[path], default=None)
    return best if best is not None and likely[best] > 0.5 else None


def size_of(found: Found) -> int:
    """Elements of the weight."""
    return math.prod(found.shape)
