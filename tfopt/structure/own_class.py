"""Models of a class of somebody's own, in other sizes: by the configuration of the class, so that the class stays.

Such a class builds its graph in `__init__` from numbers such as `num_layers`, as KerasHub's backbones do, and maybe
around another model, as its tasks do around a backbone. As for layers (`structure.resize`), a number is the right
one if what is made with another has just the weights wanted.
"""

import contextlib
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfopt._keras import keras_api
from tfopt._keras.adapted import carry_adapted
from tfopt.structure.nodes import called_layers, is_functional
from tfopt.structure.resize import Made, Shape, config_of_layer, fitting_changes, remembered

_BY_KERAS = ("Functional", "Model", "Sequential")


def own_config(model: Any) -> dict[str, Any] | None:
    """The configuration that a model's own class builds its graph from; None where there is none, or Keras's."""
    if not is_functional(model) or type(model).__name__ in _BY_KERAS:
        return None
    config = config_of_layer(model)
    return None if config is None or "layers" in config else config


def own_parts(model: Any) -> dict[str, Any]:
    """Entry of a model's own configuration -> the functional model in it, such as a task's backbone."""
    inside = {id(layer) for _, layer in keras_api.walk(model)}
    found = {key: getattr(model, key, None) for key in own_config(model) or {}}
    return {key: part for key, part in found.items() if id(part) in inside and own_config(part) is not None}


def in_sizes(model: Any, values: Mapping[str, np.ndarray]) -> Any | None:
    """A new model of the same class with weights of other shapes; None where its configuration gives no such.

    Args:
        model: a functional model; it is not changed.
        values: path of each weight -> its new value.
    """
    own = keras_api.weights(model)
    config = _config_for(model, {id(w.variable): values[w.path].shape for w in own}, hollow=False)
    made = None if config is None else from_config(model, config)
    if made is not None:
        for weight, new in zip(own, keras_api.weights(made), strict=True):
            new.variable.assign(values[weight.path])
        carry_adapted(model, made)
    return made


def can_be_made(model: Any, shapes: Mapping[str, Shape], made: Made | None = None) -> bool:
    """Whether the class can be made with weights of other shapes; all weights by path. `made` as in `resize`."""
    wanted = {id(w.variable): shapes[w.path] for w in keras_api.weights(model)}
    return _config_for(model, wanted, hollow=True, made=made) is not None


def with_part(model: Any, key: str, part: Any) -> Any | None:
    """A new model of the same class around another part; None where it refuses it."""
    inside = {id(w.variable) for w in keras_api.weights(getattr(model, key))}
    made = from_config(model, {**config_to_change(model), key: part})
    if made is None:
        return None
    theirs = {id(w.variable) for w in keras_api.weights(part)}
    old = [w.variable for w in keras_api.weights(model) if id(w.variable) not in inside]
    new = [w.variable for w in keras_api.weights(made) if id(w.variable) not in theirs]
    if [tuple(v.shape) for v in old] != [tuple(v.shape) for v in new]:
        return None
    for source, target in zip(old, new, strict=True):
        target.assign(keras_api.to_numpy(source))
    return made


def _config_for(
    model: Any, shapes: Mapping[int, Shape], hollow: bool, made: Made | None = None
) -> dict[str, Any] | None:
    """The configuration of a model whose weights, in their order, have other shapes.

    With `hollow`, parts in it have no values, only shapes.
    """
    if own_config(model) is None:
        return None
    variables = [w.variable for w in keras_api.weights(model)]
    have = [tuple(map(int, v.shape)) for v in variables]
    wanted = [tuple(map(int, shapes[id(v)])) for v in variables]
    config, parts = config_to_change(model), own_parts(model)
    inside: dict[str, Any] = {}  # configurations of the parts, which tell them apart as objects do not
    for key, part in parts.items():
        inside[key] = _config_for(part, shapes, hollow=hollow, made=made)
        config[key] = None if inside[key] is None else from_config(part, inside[key], hollow=hollow)
        if config[key] is None:
            return None

    def shapes_of(tried: dict[str, Any]) -> list[Shape] | None:
        return remembered(made, (type(model).__name__, {**tried, **inside}), lambda: made_shapes(tried))

    def made_shapes(tried: dict[str, Any]) -> list[Shape] | None:
        # The values of a large model take longer than its graph; a task makes some that need values.
        found = from_config(model, dict(tried), hollow=not parts)
        return None if found is None else [tuple(map(int, w.variable.shape)) for w in keras_api.weights(found)]

    if shapes_of(config) == wanted:
        return config
    return fitting_changes(config, have, wanted, shapes_of=shapes_of)


def config_to_change(model: Any) -> dict[str, Any]:
    """The configuration; what is no part of the graph, such as a preprocessor, is handed over as it is."""
    config = own_config(model) or {}
    called = {id(layer) for layer in called_layers(model)}
    for key, value in config.items():
        held = getattr(model, key, None)
        if isinstance(value, dict) and "class_name" in value and hasattr(held, "get_config"):
            config[key] = value if id(held) in called else held
    return config


def from_config(model: Any, config: dict[str, Any], hollow: bool = False) -> Any | None:
    """A model of the same class, or None where it takes no such configuration; `hollow`, without values."""
    keras = keras_api.keras_module(keras_api.generation_of(model))
    # A class of tf_keras has its values at once.
    without = hollow and hasattr(keras, "StatelessScope")
    scope = keras.StatelessScope(initialize_variables=False) if without else contextlib.nullcontext()
    try:
        with warnings.catch_warnings(), scope:
            warnings.simplefilter("ignore")  # Keras tells what does not fit; that is what is tried out
            return type(model).from_config(config)
    except Exception:  # noqa: BLE001 - whatever somebody's own class raises for sizes that it was not meant for
        return None
