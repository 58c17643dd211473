"""The nodes of functional models of either generation, in the order in which they run."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tfopt._keras import keras_api
from tfopt.errors import InputError


@dataclasses.dataclass(frozen=True)
class Node:
    """One call of a layer or operation.

    Attributes:
        operation: what is called; None for an input of the model.
        inputs: identities of the symbolic tensors it reads.
        outputs: those it gives.
        symbolic: the symbolic tensors that it gives.
        read: those that it reads.
        fill: values by identity -> (arguments, keyword arguments) of the call.
    """

    operation: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    symbolic: tuple[Any, ...]
    read: tuple[Any, ...]
    fill: Callable[[Mapping[int, Any]], tuple[Any, Any]]


def is_functional(model: Any) -> bool:
    """Whether the graph of a model is known."""
    inner = getattr(model, "_functional", None)
    return bool(getattr(model if inner is None else inner, "_nodes_by_depth", None))


def functional(model: Any) -> Any:
    """The functional model that `model` is, or that a sequential model holds.

    Raises:
        InputError: a model whose graph is not known.
    """
    inner = getattr(model, "_functional", None)  # of a Sequential of Keras 3
    found = model if inner is None else inner
    if not getattr(found, "_nodes_by_depth", None):
        raise InputError(
            f"model {model.name!r} is no functional model, so its graph is not known; build it with keras.Model("
            "inputs, outputs)"
        )
    return found


def nodes(model: Any) -> Iterator[Node]:
    """Every call in the graph of a functional model, inputs first."""
    graph = functional(model)
    keras3 = keras_api.generation_of(graph) == "keras"
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        for node in graph._nodes_by_depth[depth]:
            yield _of_keras3(node) if keras3 else _of_tf_keras(node)


def called_layers(model: Any) -> Iterator[Any]:
    """The layers that a functional model calls, and those of functional models inside it."""
    for node in nodes(model):
        if node.operation is not None:
            yield node.operation
            if keras_api.is_model(node.operation) and is_functional(node.operation):
                yield from called_layers(node.operation)


def _of_keras3(node: Any) -> Node:
    def fill(values: Mapping[int, Any]) -> tuple[Any, Any]:
        return node.arguments.fill_in(values)

    read, outputs = tuple(node.input_tensors), tuple(node.outputs)
    operation = None if node.is_input else node.operation
    return Node(operation, tuple(map(id, read)), tuple(map(id, outputs)), symbolic=outputs, read=read, fill=fill)


def _of_tf_keras(node: Any) -> Node:
    def fill(values: Mapping[int, Any]) -> tuple[Any, Any]:
        # It takes each value off a list of as many as there are readers.
        return node.map_arguments({str(k): [v] * 99 for k, v in values.items()})

    read = () if node.is_input else tuple(node.keras_inputs)
    inputs = () if node.is_input else tuple(int(i) for i in node.flat_input_ids)
    outputs = tuple(flat(node.outputs))
    operation = None if node.is_input else node.layer
    return Node(operation, inputs, tuple(map(id, outputs)), symbolic=outputs, read=read, fill=fill)


def flat(value: Any) -> list[Any]:
    """The tensors in what a call gave."""
    import tensorflow as tf

    return list(tf.nest.flatten(value))


def struct_of(root: Any, which: str) -> Any:
    """The "inputs" or "outputs" of a functional model, as they were given."""
    found = getattr(root, f"_{which}_struct", None)  # Keras 3
    return getattr(root, f"_nested_{which}") if found is None else found


def filled(struct: Any, values: Mapping[int, Any]) -> Any:
    """A structure of symbolic tensors with the values that stand for them, by identity."""
    if isinstance(struct, dict):
        return {name: filled(value, values) for name, value in struct.items()}
    if isinstance(struct, list | tuple):
        return type(struct)(filled(value, values) for value in struct)
    return values[id(struct)]


def given_by_input(model: Any, given: Any) -> list[Any]:
    """What a model is called with, in the order of its flat inputs; a dictionary goes by their names."""
    struct = struct_of(functional(model), "inputs")
    if isinstance(given, dict) and not isinstance(struct, dict):
        return [given[str(tensor.name).partition(":")[0]] for tensor in flat(struct)]
    if isinstance(given, dict):
        given = {name: given[name] for name in struct}
    return flat(given)


def inputs_in_order(model: Any) -> list[Any]:
    """The symbolic inputs in the order that the model names them in; flattening would sort them."""
    struct = struct_of(functional(model), "inputs")
    return list(struct.values()) if isinstance(struct, dict) else flat(struct)


def free_name(model: Any, wished: str) -> str:
    """A name that no operation of the model has."""
    taken = {node.operation.name for node in nodes(model) if node.operation is not None}
    taken |= {name for name, _ in keras_api.walk(model)}
    numbered = (f"{wished}_{number}" for number in itertools.count(1))
    return next(name for name in itertools.chain([wished], numbered) if name not in taken)
