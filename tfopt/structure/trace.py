"""A functional model as a graph of TensorFlow operations, each with the layer that made it."""

import dataclasses
from typing import Any

import tensorflow as tf
from tensorflow.python.framework.func_graph import FuncGraph  # a public name for it does not exist

from tfopt._keras import keras_api
from tfopt._keras.keras_io import inputs_of
from tfopt.errors import InputError
from tfopt.structure.nodes import flat, functional, inputs_in_order, nodes, struct_of

_BATCH, _LENGTHS = 3, (7, 67, 257)  # primes: a size tells an axis; larger ones where convolutions need them


@dataclasses.dataclass(frozen=True)
class Trace:
    """What running a model once showed.

    Attributes:
        operations: in the order in which they ran.
        owner: name of an operation -> the layer or Keras operation that made it.
        variables: name of an operation that reads a weight -> path of the weight.
        tensors: identity of a symbolic tensor of the model -> its value in the graph.
        inputs, outputs: of the model.
        length: the size that unknown axes were given.
    """

    operations: list[Any]
    owner: dict[str, Any]
    variables: dict[str, str]
    tensors: dict[int, Any]
    inputs: list[Any]
    outputs: list[Any]
    length: int


def trace(model: Any) -> Trace:
    """Runs every node of a functional model on symbolic values of known sizes.

    Raises:
        InputError: the model is not functional, or takes none of a few sizes.
    """
    root = functional(model)
    problem: Exception | None = None
    for length in _LENGTHS if inputs_of(root).has_length else _LENGTHS[:1]:
        try:
            return _traced(model, root, length)
        except (ValueError, tf.errors.InvalidArgumentError) as error:
            problem = error
    raise InputError(f"the graph of model {model.name!r} could not be traced: {problem}") from problem


def _traced(model: Any, root: Any, length: int) -> Trace:
    graph = FuncGraph("structure")
    specs = inputs_of(root).with_sizes(_BATCH, length)
    owner: dict[str, Any] = {}
    with graph.as_default():
        ids = [id(tensor) for tensor in inputs_in_order(root)]
        values = dict(zip(ids, [_placeholder(spec) for spec in specs.values()], strict=True))
        given = list(values.values())
        for node in nodes(root):
            if node.operation is None:
                continue
            before = len(graph.get_operations())
            arguments, keywords = node.fill(values)
            result = flat(node.operation(*arguments, **keywords))
            values.update(zip(node.outputs, result, strict=True))
            owner |= {op.name: node.operation for op in graph.get_operations()[before:]}
    handles = {id(handle): w.path for w in keras_api.weights(model) for handle in _handles(w.variable)}
    captured = {internal.name: handles.get(id(external)) for external, internal in graph.captures}
    reads = {
        op.name: path
        for op in graph.get_operations()
        for tensor in op.inputs
        if (path := captured.get(tensor.name)) is not None
    }
    outputs = [values[id(t)] for t in flat(struct_of(root, "outputs"))]
    return Trace(
        list(graph.get_operations()), owner, reads, tensors=values, inputs=given, outputs=outputs, length=length
    )


def _handles(variable: Any) -> list[Any]:
    """The resources behind a variable, one for each replica."""
    inner = keras_api.tf_variable(variable)
    return [part.handle for part in getattr(inner, "values", None) or [inner]]


def _placeholder(spec: tf.TensorSpec) -> tf.Tensor:
    return tf.compat.v1.placeholder(spec.dtype, spec.shape)
