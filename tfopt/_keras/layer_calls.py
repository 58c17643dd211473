"""Layers as they are for a while: with other calls, other values, or frozen."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from tfopt._keras import keras_api

Call = Callable[..., Any]

_SWAPPED = "_tfopt_swapped"


class Replaced:
    """Replaces attributes of layers, and gives them back."""

    def __init__(self) -> None:
        self._before: list[tuple[Any, str, Any]] = []

    def put(self, owner: Any, name: str, value: Any) -> None:
        """Sets an attribute of the instance behind the back of Keras' tracking."""
        self._before.append((owner, name, vars(owner).get(name)))
        object.__setattr__(owner, name, value)

    def give_back(self) -> None:
        """Every attribute is what it was, the last one replaced first."""
        for owner, name, before in reversed(self._before):
            if before is None:
                object.__delattr__(owner, name)
            else:
                object.__setattr__(owner, name, before)
        self._before.clear()


def original_call(node: Any) -> Call:
    """The call in use now: one on the instance, as tf_keras operations have, or that of the class."""
    return vars(node).get("call") or node.call


def attribute_of(layer: Any, variable: Any) -> str:
    """Name under which the layer keeps the variable."""
    return next(name for name, value in vars(layer).items() if value is variable)


@contextlib.contextmanager
def swapped(layer: Any, values: dict[str, Any]) -> Iterator[None]:
    """While entered, attributes of the layer have other values, behind the back of Keras' tracking."""
    # Threads of several replicas take turns where they sum something, and so may be in here at once: what a layer
    # had of its own comes back when the last of them leaves.
    held = vars(layer).setdefault(_SWAPPED, {})
    for name, value in values.items():
        held.setdefault(name, [vars(layer).get(name, _SWAPPED), 0])[1] += 1
        object.__setattr__(layer, name, value)
    try:
        yield
    finally:
        for name in values:
            held[name][1] -= 1
            if held[name][1]:
                continue
            before = held.pop(name)[0]
            if before is _SWAPPED:  # it had none
                object.__delattr__(layer, name)
            else:
                object.__setattr__(layer, name, before)
        if not held:
            vars(layer).pop(_SWAPPED, None)


def forget_traces(model: Any) -> None:
    """Drops the model's compiled functions, which hold the calls that its layers had."""
    for name in ("train_function", "test_function", "predict_function"):
        if getattr(model, name, None) is not None:
            setattr(model, name, None)


def freeze(layer: Any) -> Callable[[], None]:
    """Keeps what a layer made itself from being trained, sublayers excluded; returns what undoes it."""
    if keras_api.generation_of(layer) == "tf_keras":
        before = (layer._trainable_weights, layer._non_trainable_weights)

        def put(trainable: Any, fixed: Any) -> None:  # Keras itself would track what is assigned, as trainable
            object.__setattr__(layer, "_trainable_weights", trainable)
            object.__setattr__(layer, "_non_trainable_weights", fixed)

        def thaw() -> None:
            put(*before)

        put([], [*before[0], *before[1]])

        return thaw
    variables = [v for v in layer._trainable_variables if v.trainable]
    for variable in variables:
        variable.trainable = False

    def thaw_all() -> None:
        for variable in variables:
            variable.trainable = True

    return thaw_all
