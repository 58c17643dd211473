"""Reads the roundings that a converter kept as QUANTIZE and DEQUANTIZE pairs, and takes them out again."""

from typing import Any

from tfopt.export import flatbuffer as fb

Range = tuple[float, float]


def strip_ranges(model: Any) -> dict[str, Range]:
    """Takes QUANTIZE -> DEQUANTIZE pairs out of every graph, and returns the ranges that they named by tensor."""
    ranges: dict[str, Range] = {}
    for number, graph in enumerate(model.subgraphs):
        by_output = {int(op.outputs[0]): op for op in graph.operators}
        renamed: dict[int, int] = {}
        dropped = set()
        for op in graph.operators:
            if fb.code(model, op) != fb.Op.DEQUANTIZE:
                continue
            rounding = by_output.get(int(op.inputs[0]))
            if rounding is None or fb.code(model, rounding) != fb.Op.QUANTIZE:
                continue
            source = int(rounding.inputs[0])
            source = renamed.get(source, source)
            ranges.setdefault(fb.name(graph.tensors[source]), _range_of(graph.tensors[int(op.inputs[0])]))
            renamed[int(op.outputs[0])] = source
            dropped |= {id(op), id(rounding)}
        graph.operators = [op for op in graph.operators if id(op) not in dropped]
        for op in graph.operators:
            op.inputs = [renamed.get(int(i), int(i)) for i in op.inputs]
        graph.outputs = [renamed.get(int(i), int(i)) for i in graph.outputs]
        for signature in model.signatureDefs:
            if signature.subgraphIndex == number:
                for output in signature.outputs:
                    output.tensorIndex = renamed.get(int(output.tensorIndex), int(output.tensorIndex))
    fb.drop_unused_tensors(model)
    return ranges


def _range_of(tensor: Any) -> Range:
    scale, zero = float(tensor.quantization.scale[0]), int(tensor.quantization.zeroPoint[0])
    lowest, highest = {3: (0, 255), 9: (-128, 127), 16: (0, 65535), 7: (-32768, 32767)}[tensor.type]
    return (lowest - zero) * scale, (highest - zero) * scale
