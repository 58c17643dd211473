"""A functional model in which the models that it calls are spelled out: the same layers in one graph."""

from typing import Any

from tfopt._keras import keras_api
from tfopt.structure.nodes import filled, flat, functional, given_by_input, is_functional, nodes, struct_of


def inlined(model: Any) -> Any:
    """A model of the same inputs, outputs and layers, with the weights shared; itself where it calls no model."""
    if not any(_can_be_spelled_out(node.operation) for node in nodes(model)):
        return model
    root = functional(model)
    inputs = struct_of(root, "inputs")
    values = {id(tensor): tensor for tensor in flat(inputs)}
    outputs = _run(root, values)
    return keras_api.keras_module(keras_api.generation_of(model)).Model(inputs, outputs, name=model.name)


def _can_be_spelled_out(operation: Any) -> bool:
    """Whether it is a functional model that does nothing else when it is called."""
    if operation is None or not keras_api.is_model(operation) or not is_functional(operation):
        return False
    caller = next(kind for kind in type(operation).__mro__ if "call" in vars(kind))
    return caller.__module__.partition(".")[0] in ("keras", "tf_keras")


def _run(root: Any, values: dict[int, Any]) -> Any:
    """Calls every layer of a graph once more, and returns the outputs."""
    for node in nodes(root):
        if node.operation is None:
            continue
        arguments, keywords = node.fill(values)
        if _can_be_spelled_out(node.operation):
            inner = functional(node.operation)
            given = arguments[0] if arguments else keywords["inputs"]
            wanted = map(id, flat(struct_of(inner, "inputs")))
            result = _run(inner, dict(zip(wanted, given_by_input(inner, given), strict=True)))
        else:
            result = node.operation(*arguments, **keywords)
        values.update(zip(node.outputs, flat(result), strict=True))
    return filled(struct_of(root, "outputs"), values)
