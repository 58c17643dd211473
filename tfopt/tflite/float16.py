"""Weights of a float file in half precision, each buffer once however many operators read it.

The converter's own float16 option keeps a second copy of a table that is looked up in and multiplied by.
"""

from typing import Any

import numpy as np

from tfopt.tflite import flatbuffer as fb
from tfopt.tflite.grids import widen
from tfopt.tflite.weights import LOOKUPS, find_weights


def narrow_floats(model: Any) -> None:
    """Stores weights in float16, in place; products widen them, lookups the rows that they return."""
    weights = {weight.buffer: weight.matrix for weight in find_weights(model)}
    for buffer in weights:
        values = np.asarray(model.buffers[buffer].data, np.uint8).view(np.float32)
        model.buffers[buffer].data = values.astype(np.float16).view(np.uint8)
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            if tensor.buffer in weights:
                tensor.type = fb.FLOAT16
        widen(model, graph, set(weights))
        operators = []
        for op in graph.operators:
            operators.append(op)
            if fb.code(model, op) not in LOOKUPS or graph.tensors[int(op.inputs[0])].buffer not in weights:
                continue
            result = int(op.outputs[0])
            rows = fb.add_tensor(graph, "rows", graph.tensors[result].shape, dtype=fb.FLOAT16)
            op.outputs = [rows]
            operators.append(fb.operator(model, fb.Op.DEQUANTIZE, 3, inputs=[rows], outputs=[result]))
        graph.operators = operators
