"""A functional model as a graph of TensorFlow operations, each with the layer that made it."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
from tensorflow.python.framework.func_graph import FuncGraph  # a public name for it does not exist

from tfopt._keras import keras_api
from tfopt._keras.keras_io import inputs_of
from tfopt._keras.layer_calls import Call, Replaced, original_call
from tfopt._keras.lookups import LOOKUPS
from tfopt.errors import InputError
from tfopt.structure.nodes import flat, functional, inputs_in_order, nodes, struct_of

_BATCH, _LENGTHS = 3, (7, 67, 257)  # primes: a size tells an axis; larger ones where convolutions need them


@dataclasses.dataclass(frozen=True)
class Trace:
    """What running a model once showed.

    Attributes:
        operations: in the order in which they ran.
        owner: name of an operation -> the layer or Keras operation of the graph that made it.
        inner: name of an operation of a layer or model that holds others -> the innermost of them that made it.
        variables: name of an operation that reads a weight -> path of the weight.
        tensors: identity of a symbolic tensor of the model -> its value in the graph.
        inputs, outputs: of the model.
        length: the size that unknown axes were given.
    """

    operations: list[Any]
    owner: dict[str, Any]
    inner: dict[str, Any]
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
    inner: dict[str, Any] = {}
    with graph.as_default():
        ids = [id(tensor) for tensor in inputs_in_order(root)]
        values = dict(zip(ids, [_placeholder(spec) for spec in specs.values()], strict=True))
        given = list(values.values())
        for node in nodes(root):
            if node.operation is None:
                continue
            if (
                type(node.operation).__name__ in LOOKUPS
            ):  # what is looked up begins there, whatever words there were
                values.update(zip(node.outputs, [_ids(t, length) for t in node.symbolic], strict=True))
                continue
            before = len(graph.get_operations())
            arguments, keywords = node.fill(values)
            with _told_apart(node.operation, graph, inner):
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
        list(graph.get_operations()), owner, inner, variables=reads, tensors=values, inputs=given, outputs=outputs,
        length=length,
    )  # fmt: skip


@contextlib.contextmanager
def _told_apart(operation: Any, graph: Any, inner: dict[str, Any]) -> Iterator[None]:
    """While entered, the operations of layers inside a layer or model are noted as theirs."""
    layers = [layer for _, layer in keras_api.walk(operation)] if hasattr(operation, "_flatten_layers") else []
    replaced = Replaced()
    try:
        for layer in layers:
            replaced.put(layer, "call", _noting(layer, original_call(layer), graph, inner=inner))
        yield
    finally:
        replaced.give_back()


def _noting(layer: Any, original: Call, graph: Any, inner: dict[str, Any]) -> Call:
    def call(*args: Any, **kwargs: Any) -> Any:
        before = len(graph.get_operations())
        result = original(*args, **kwargs)
        for op in graph.get_operations()[before:]:
            inner.setdefault(op.name, layer)  # the innermost ends first
        return result

    return call


def _handles(variable: Any) -> list[Any]:
    """The resources behind a variable, one for each replica."""
    inner = keras_api.tf_variable(variable)
    return [part.handle for part in getattr(inner, "values", None) or [inner]]


def _ids(tensor: Any, length: int) -> tf.Tensor:
    sizes = [length if size is None else size for size in tuple(tensor.shape)[1:]]
    return tf.compat.v1.placeholder(tf.as_dtype(tensor.dtype), [_BATCH, *sizes])


def _placeholder(spec: tf.TensorSpec) -> tf.Tensor:
    return tf.compat.v1.placeholder(spec.dtype, spec.shape)
