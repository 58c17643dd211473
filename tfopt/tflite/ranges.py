"""Reads the roundings that a converter kept as QUANTIZE and DEQUANTIZE pairs, and takes them out again."""

from typing import Any

from tfopt.tflite import flatbuffer as fb

Range = tuple[float, float]
# Lowest and highest integer of a tensor's type.
_LIMITS = {3: (0, 255), 9: (-128, 127), 16: (0, 65535), 7: (-32768, 32767)}
_WIDE_TYPES = (7, 16)


def strip_ranges(model: Any) -> tuple[dict[str, Range], set[str]]:
    """Takes QUANTIZE -> DEQUANTIZE pairs out of every graph.

    Returns:
        The ranges that the pairs named, by tensor, and the tensors that had 16 bits.
    """
    ranges: dict[str, Range] = {}
    wide: set[str] = set()
    for number, graph in enumerate(model.subgraphs):
        renamed: dict[int, int] = {}
        dropped = set()
        for op in graph.operators:
            source, result = int(op.inputs[0]) if len(op.inputs) else -1, int(op.outputs[0])
            if fb.code(model, op) == fb.Op.QUANTIZE and graph.tensors[source].type == fb.FLOAT32:
                source = renamed.get(source, source)
                ranges.setdefault(fb.name(graph.tensors[source]), _range_of(graph.tensors[result]))
                if graph.tensors[result].type in _WIDE_TYPES:
                    wide.add(fb.name(graph.tensors[source]))
            elif fb.code(model, op) != fb.Op.DEQUANTIZE or source not in renamed:
                continue  # some products read the integers: the converter takes DEQUANTIZE away before them
            renamed[result] = renamed.get(source, source)
            dropped.add(id(op))
        graph.operators = [op for op in graph.operators if id(op) not in dropped]
        for op in graph.operators:
            op.inputs = [renamed.get(int(i), int(i)) for i in op.inputs]
        graph.outputs = [renamed.get(int(i), int(i)) for i in graph.outputs]
        for signature in model.signatureDefs:
            if signature.subgraphIndex == number:
                for output in signature.outputs:
                    output.tensorIndex = renamed.get(int(output.tensorIndex), int(output.tensorIndex))
    fb.drop_unused_tensors(model)
    return ranges, wide


def _range_of(tensor: Any) -> Range:
    scale, zero = float(tensor.quantization.scale[0]), int(tensor.quantization.zeroPoint[0])
    lowest, highest = _LIMITS[tensor.type]
    return (lowest - zero) * scale, (highest - zero) * scale
