"""Writes the grids of a quantized model into a float TFLite file: the same integers, not a second rounding."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfopt.numerics.grids import WeightSpec
from tfopt.quantization.record import Grid, Record
from tfopt.tflite import flatbuffer as fb
from tfopt.tflite.layer_bits import LayerBits
from tfopt.tflite.matching import Matched, Origins, Unmatched, match
from tfopt.tflite.offsets import add_offsets
from tfopt.tflite.ranges import strip_ranges
from tfopt.tflite.weights import LOOKUPS, PRODUCTS, Found

# Smaller matrices stay in float where no grid was trained for them: nothing is gained by narrowing them.
SMALLEST_QUANTIZED = 1024
# Without integer kernels for float activations: their weights are widened before the product.
_WIDENED = {fb.Op.TRANSPOSE_CONV}
# Takes two weights per byte, or four; others store few bits in whole bytes. Convolutions make NaN of 2 bits.
_TAKES_INT4 = {fb.Op.FULLY_CONNECTED, fb.Op.CONV_2D, fb.Op.EMBEDDING_LOOKUP}
_TAKES_INT2 = {fb.Op.FULLY_CONNECTED, fb.Op.EMBEDDING_LOOKUP}
_TYPES = {8: fb.INT8, 4: fb.INT4, 2: fb.INT2}


def write_grids(
    content: bytes,
    record: Record,
    rows: Callable[[Any], None],
    fallback: Callable[[Unmatched], Grid | None],
    origins: Origins,
) -> tuple[bytes, list[Matched], list[LayerBits]]:
    """Writes integer weights where activations stay in float or are quantized while running.

    Args:
        content: a float TFLite file of the model.
        record: its grids.
        rows: rewrites lookups, see `lookups.look_up_rows`.
        fallback: the grid of a weight that matches none of the record's, or None to leave it in float.
        origins: the matrices of the model.

    Returns:
        The new file, what was written, and the bits of every matrix of the model.
    """
    model = fb.read(content)
    strip_ranges(model)
    rows(model)
    matched, others = match(model, origins)
    matched += [Matched(other.found, grid) for other in others for grid in [fallback(other)] if grid is not None]
    widened = {m.found.buffer for m in matched if _needs_widening(m, record.config.activations == "none")}
    for item in matched:
        _write_one(model, item)
    add_offsets(model, matched)
    for graph in model.subgraphs:
        widen(model, graph, widened)
        for op in graph.operators:
            kind = fb.code(model, op)
            if kind not in PRODUCTS:
                continue
            place, _, version = PRODUCTS[kind]
            if graph.tensors[int(op.inputs[place])].type in _TYPES.values():
                fb.opcode(model, kind, version)
                if hasattr(op.builtinOptions, "asymmetricQuantizeInputs"):
                    op.builtinOptions.asymmetricQuantizeInputs = not record.config.activation_symmetric
    return fb.write(model), matched, layer_bits(record, matched)


def _needs_widening(item: Matched, weights_only: bool) -> bool:
    return weights_only or item.found.operator in _WIDENED


def _write_one(model: Any, item: Matched) -> None:
    bits = stored_bits(item)
    integers = np.moveaxis(
        item.grid.integers.reshape([item.found.shape[item.found.axis], *_without(item.found)]), 0, item.found.axis
    )
    model.buffers[item.found.buffer].data = packed(integers, bits)
    half = item.grid.scale.astype(np.float16)  # exact: scales of blocks came from bfloat16
    scales = fb.add_buffer(model, half) if isinstance(item.grid.spec.granularity, int) else 0
    for graph in model.subgraphs:
        for tensor in [t for t in graph.tensors if t.buffer == item.found.buffer]:
            tensor.type = _TYPES[bits]
            tensor.quantization = _parameters(graph, item, scales)


def _without(found: Found) -> list[int]:
    return [size for axis, size in enumerate(found.shape) if axis != found.axis]


def packed(integers: np.ndarray, bits: int) -> np.ndarray:
    """Integers of 2, 4 or 8 bits as bytes, the first of each byte in its low end."""
    flat, count = integers.ravel().astype(np.int8).view(np.uint8), 8 // bits
    parts = (np.pad(flat, (0, -flat.size % count)) & ((1 << bits) - 1)).reshape(-1, count)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    found: np.ndarray = np.bitwise_or.reduce(parts << shifts, axis=1)
    return found


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
    # A lookup takes rows of few bits by whole bytes: those of an odd width come out wrong, without an error.
    width, operator, spec = item.found.shape[-1], item.found.operator, item.grid.spec
    in_blocks = isinstance(spec.granularity, int)
    if spec.bits <= 2 and operator in _TAKES_INT2 and width % 4 == 0 and not in_blocks:
        return 2
    return 4 if spec.bits <= 4 and operator in _TAKES_INT4 and not (operator in LOOKUPS and width % 2) else 8


def nearest_grid(found: Found, bits: int, path: str) -> Grid:
    """A grid by rounding to nearest, one scale per output, for a weight that no known layer owns."""
    spec = WeightSpec(bits)
    reach = np.abs(found.matrix).max(1, keepdims=True)
    scale = np.where(reach > 0, reach / spec.largest, 1).astype(np.float32)
    integers = np.clip(np.rint(found.matrix / scale), spec.smallest, spec.largest).astype(np.int8)
    return Grid(path, spec, integers, scale=scale, zero=np.zeros_like(scale), source=found.matrix)


def size_of(found: Found) -> int:
    """Elements of the weight."""
    return math.prod(found.shape)
