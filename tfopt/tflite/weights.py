"""The constant weights of a file and the operators that read them."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from tfopt.tflite import flatbuffer as fb

# Operators with a constant weight: its position among the inputs, the axis of its output channels, and the
# version from which the operator takes integer weights with float activations.
PRODUCTS = {
    fb.Op.FULLY_CONNECTED: (1, 0, 9), fb.Op.CONV_2D: (1, 0, 5), fb.Op.DEPTHWISE_CONV_2D: (1, 3, 6),
    fb.Op.TRANSPOSE_CONV: (1, 0, 3), fb.Op.EMBEDDING_LOOKUP: (1, 0, 4), fb.Op.GATHER: (0, 0, 5),
}  # fmt: skip
# Widen the rows that they return by themselves.
LOOKUPS = {fb.Op.EMBEDDING_LOOKUP, fb.Op.GATHER}


class Reader(NamedTuple):
    """An operator that reads a weight: its places in the file, and the name of what it computes."""

    graph: int
    operator: int
    place: int
    name: str


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
    readers: tuple[Reader, ...] = dataclasses.field(repr=False)

    @property
    def name(self) -> str:
        return self.names[0]


def find_weights(model: Any) -> list[Found]:
    """Every constant float weight that an operator multiplies by or looks up in, each buffer once."""
    weights: dict[int, Found] = {}
    names: dict[int, list[str]] = {}
    readers: dict[int, list[Reader]] = {}
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            names.setdefault(tensor.buffer, []).append(fb.name(tensor))
    for place_of_graph, graph in enumerate(model.subgraphs):
        for number, op in enumerate(graph.operators):
            kind = fb.code(model, op)
            if kind not in PRODUCTS:
                continue
            place, axis, _ = PRODUCTS[kind]
            tensor = graph.tensors[int(op.inputs[place])]
            values = fb.floats(model, tensor)
            if values is None or values.ndim < 2:
                continue
            result = fb.name(graph.tensors[int(op.outputs[0])])
            readers.setdefault(tensor.buffer, []).append(Reader(place_of_graph, number, place, name=result))
            if tensor.buffer in weights:
                continue
            matrix = np.ascontiguousarray(np.moveaxis(values, axis, 0)).reshape(values.shape[axis], -1)
            weights[tensor.buffer] = Found(
                tensor.buffer, kind, tuple(names[tensor.buffer]), axis=axis, shape=values.shape, matrix=matrix,
                readers=(),
            )  # fmt: skip
    return [dataclasses.replace(w, readers=tuple(readers[w.buffer])) for w in weights.values()]
