"""Static quantization of a TFLite file: integers from input to output, on ranges that are already known.

The model is traced with its roundings in it, which a converter keeps as pairs of QUANTIZE and DEQUANTIZE; each
pair names a tensor and its grid. Taken out again, they leave a float file and a table of ranges, from which
litert-quantizer writes the integer file.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from tfopt.errors import InputError, WorkFailedError
from tfopt.export.observed import Samples, observe
from tfopt.quantization.config import QuantizeConfig
from tfopt.tflite import flatbuffer as fb
from tfopt.tflite.matching import Matched, Origins, Unmatched, match, products_apart
from tfopt.tflite.ranges import Range, strip_ranges

# Outputs are values of the input on the input's grid; the input that counts.
_SAME_GRID = {
    fb.Op.RESHAPE: 0, fb.Op.TRANSPOSE: 0, fb.Op.SQUEEZE: 0, fb.Op.EXPAND_DIMS: 0, fb.Op.SLICE: 0,
    fb.Op.STRIDED_SLICE: 0, fb.Op.MAX_POOL_2D: 0, fb.Op.PAD: 0, fb.Op.SPLIT: 1, fb.Op.GATHER: 0,
    fb.Op.BROADCAST_TO: 0, fb.Op.TILE: 0, fb.Op.RESIZE_NEAREST_NEIGHBOR: 0, fb.Op.GATHER_ND: 0, fb.Op.UNPACK: 0,
}  # fmt: skip


def write_static(
    content: bytes, config: QuantizeConfig, origins: Origins, samples: Samples | None
) -> tuple[bytes, list[Matched]]:
    """Quantizes a file that was converted from a model with frozen ranges.

    To be called in a child: litert-quantizer prints its progress, and warns on the root logger of what it was made
    to do.

    Args:
        content: a TFLite file with QUANTIZE and DEQUANTIZE around every tensor whose range is known.
        config: bits of activations.
        origins: the matrices of the model, with their grids.
        samples: inputs by signature, to observe what no rounding covered; None if there are none.

    Returns:
        The integer file, and its weights with the grids they were given.

    Raises:
        InputError: tensors without a range, and no samples to observe them.
        WorkFailedError: litert-quantizer gave up.
    """
    model = fb.read(content)
    ranges, wide = strip_ranges(model)
    matched, others = match(model, origins)
    matched = products_apart(model, matched)
    for item in matched:
        if item.found.operator == fb.Op.GATHER:  # what is looked up lies on the table's grid
            scale = float(item.grid.scale.max())
            # With 16 bits, the same integers and scale in a wider type.
            limits = (-32767, 32767) if config.activation_bits == 16 else (-128, 127)
            ranges.update(dict.fromkeys(item.found.names, (limits[0] * scale, limits[1] * scale)))
    plain = fb.write(model)
    known = _spread(model, ranges, wide)
    quantizer = _quantizer(plain, config, _touching(model, wide), floats=_readers(model, others))
    missing = _without_range(model, known)
    if missing:
        if samples is None:
            raise InputError(
                f"static quantization needs representative data: {len(missing)} tensors have no trained range, "
                f"{missing[0]!r} for one"
            )
        known |= observe(plain, set(missing), samples)
        _move_on(model, known, set(missing))
    statistics: dict[str, Any] = {name: _as_statistics(found) for name, found in known.items()}
    for item in matched:
        if item.found.operator != fb.Op.GATHER:
            statistics.update(dict.fromkeys(item.found.names, _weight_statistics(item)))
    try:
        result = quantizer.quantize(statistics)
    except (ValueError, RuntimeError, KeyError) as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise WorkFailedError(f"static quantization failed: {reason}") from error
    written = fb.read(bytes(result.quantized_model))
    _narrow_unread(written)
    _settle_ties(written, matched)
    matched = _store_once(written, matched)
    return fb.write(written), matched


def _narrow_unread(model: Any) -> None:
    """Results that nothing reads stay in float, and runtimes refuse an operator whose results are of two types."""
    for graph in model.subgraphs:
        for op in (o for o in graph.operators if fb.code(model, o) in (fb.Op.SPLIT, fb.Op.UNPACK)):
            results = [graph.tensors[int(i)] for i in op.outputs]
            narrow = [tensor for tensor in results if tensor.type in (fb.INT8, fb.INT16)]
            for tensor in results if narrow else ():
                if tensor.type == fb.FLOAT32:
                    tensor.type, tensor.quantization = narrow[0].type, narrow[0].quantization


def _settle_ties(model: Any, matched: list[Matched]) -> None:
    """Writes the integers of the grids: half way between two, a scale that is off by its last bit decides."""
    items = {name: item for item in matched for name in item.found.names}
    types = {fb.INT8: np.int8, fb.INT16: np.int16}
    for tensor in (t for graph in model.subgraphs for t in graph.tensors):
        item = items.get(fb.name(tensor))
        if item is None or tensor.type not in types or fb.data(model, tensor) is None:
            continue
        found = item.found
        others = [size for axis, size in enumerate(found.shape) if axis != found.axis]
        integers = np.moveaxis(item.grid.integers.reshape([found.shape[found.axis], *others]), 0, found.axis)
        stored = np.ascontiguousarray(integers, types[tensor.type])
        if stored.nbytes == len(model.buffers[tensor.buffer].data):
            model.buffers[tensor.buffer].data = stored.view(np.uint8).ravel()


def _store_once(model: Any, matched: list[Matched]) -> list[Matched]:
    """Gives tensors of one grid, of which `products_apart` made two, one buffer again; returns what is left."""
    items = {name: item for item in matched for name in item.found.names}
    kept: dict[int, int] = {}
    merged = []
    for tensor in (t for graph in model.subgraphs for t in graph.tensors):
        item = items.get(fb.name(tensor))
        data = None if item is None else model.buffers[tensor.buffer].data
        if item is None or data is None:
            continue
        first = kept.setdefault(id(item.grid), tensor.buffer)
        if first != tensor.buffer and np.array_equal(data, model.buffers[first].data):
            model.buffers[tensor.buffer].data, tensor.buffer = None, first
            merged.append(item)
    return [item for item in matched if not any(item is other for other in merged)]


def _quantizer(content: bytes, config: QuantizeConfig, wide: list[str], floats: list[str]) -> Any:
    from litert_quantizer import algorithm_manager, qtyping, quantizer

    everything, bits = qtyping.TFLOperationName.ALL_SUPPORTED, config.activation_bits or 8
    new = quantizer.Quantizer(content)
    new.add_static_config(".*", everything, bits, 8)
    for name in wide if bits == 8 else ():
        new.add_static_config(f"^{re.escape(name)};?$", everything, 16, 8)
    # Its integer kernel interpolates a table over the whole range: variances of different tokens lie a factor of
    # hundreds apart, and where most of them are it was wrong by 16 %. There is one such number per token.
    new.update_quantization_recipe(
        ".*", qtyping.TFLOperationName.RSQRT, algorithm_key=algorithm_manager.AlgorithmName.NO_QUANTIZE
    )
    for name in floats:
        new.update_quantization_recipe(
            f"^{re.escape(name)};?$", everything, algorithm_key=algorithm_manager.AlgorithmName.NO_QUANTIZE
        )
    return new


def _readers(model: Any, weights: list[Unmatched]) -> list[str]:
    """Names of the outputs of operators whose weight has no grid: they stay in float."""
    buffers = {weight.found.buffer for weight in weights}
    return [
        fb.name(graph.tensors[int(op.outputs[0])])
        for graph in model.subgraphs
        for op in graph.operators
        if any(graph.tensors[int(i)].buffer in buffers for i in op.inputs if i >= 0)
    ]


def _touching(model: Any, wide: set[str]) -> list[str]:
    """Names of the outputs of operators that read or make a tensor of 16 bits: they compute in 16 bits.

    Reciprocal roots stay in float, see `_quantizer`.
    """
    names = []
    for graph in model.subgraphs:
        for op in graph.operators:
            if fb.code(model, op) == fb.Op.RSQRT:
                continue
            touched = (fb.name(graph.tensors[int(i)]) for i in (*op.inputs, *op.outputs) if i >= 0)
            if wide.intersection(touched):
                names.append(fb.name(graph.tensors[int(op.outputs[0])]))
    return names


def _as_statistics(found: Range) -> dict[str, np.ndarray]:
    return {"min": np.array(found[0], np.float32), "max": np.array(found[1], np.float32)}


def _weight_statistics(item: Matched) -> dict[str, np.ndarray]:
    """Statistics from which litert-quantizer takes exactly the scales of the grid."""
    grid, found = item.grid, item.found
    shape = [1] * len(found.shape)
    shape[found.axis] = found.shape[found.axis]
    reach = (np.broadcast_to(grid.scale, (shape[found.axis], 1)) * 127).reshape(shape).astype(np.float32)
    return {"min": -reach, "max": reach}


def _spread(model: Any, ranges: dict[str, Range], wide: set[str]) -> dict[str, Range]:
    """Hands ranges, and 16 bits, on through operators that only move values, in both directions."""
    known = dict(ranges)
    changed = True
    while changed:
        changed = False
        for graph in model.subgraphs:
            for op in graph.operators:
                place = _SAME_GRID.get(fb.code(model, op))
                if place is None:
                    continue
                source = fb.name(graph.tensors[int(op.inputs[place])])
                for result in (fb.name(graph.tensors[int(i)]) for i in op.outputs):
                    for one, other in ((source, result), (result, source)):
                        if one in known and other not in known:
                            known[other] = known[one]
                            wide.update({other} if one in wide else ())
                            changed = True
    return known


def _move_on(model: Any, known: dict[str, Range], observed: set[str]) -> None:
    """Gives what only moves values the range of those: runtimes refuse other grids than the input's."""
    for graph in model.subgraphs:
        for op in graph.operators:
            place = _SAME_GRID.get(fb.code(model, op))
            source = None if place is None else fb.name(graph.tensors[int(op.inputs[place])])
            if source in known:
                results = {fb.name(graph.tensors[int(i)]) for i in op.outputs}
                known.update(dict.fromkeys(results & observed, known[source]))


def _without_range(model: Any, known: dict[str, Any]) -> list[str]:
    """Float tensors that are computed and have no range, except what only widens integers."""
    missing = []
    for graph in model.subgraphs:
        for op in graph.operators:
            for tensor in (graph.tensors[int(i)] for i in op.outputs):
                if tensor.type == fb.FLOAT32 and fb.name(tensor) not in known:
                    missing.append(fb.name(tensor))
        for tensor in (graph.tensors[int(i)] for i in graph.inputs):
            if tensor.type == fb.FLOAT32 and fb.name(tensor) not in known:
                missing.append(fb.name(tensor))
    return missing


def check_float_left(path: Path) -> int:
    """Number of operators of a static file that still compute in float."""
    model = fb.read(path.read_bytes())
    graph = model.subgraphs[0]
    border = (fb.Op.QUANTIZE, fb.Op.DEQUANTIZE)
    return sum(
        any(graph.tensors[int(i)].type == fb.FLOAT32 for i in op.outputs)
        for op in graph.operators
        if fb.code(model, op) not in border
    )
