"""Copies of models, so that work on one leaves the other to whoever uses it."""

import functools
from collections.abc import Mapping
from typing import Any

from tfopt._keras import extras, keras_api
from tfopt._keras.adapted import carry_adapted

_CARRIED = ("_tfopt_quantization",)  # what goes with the model object besides its members


def copy_of(model: Any, device_of: Mapping[str, str] | None = None) -> Any | None:
    """A model with the same layers, names and weights; None where its configuration does not give one.

    Args:
        model: a built model of either generation; it is not changed.
        device_of: name of a layer -> device that its weights are to be on; others are where TensorFlow puts them.
    """
    keras = keras_api.keras_module(keras_api.generation_of(model))
    further = {} if device_of is None else {"clone_function": functools.partial(_on_device, device_of)}
    try:
        made = keras.models.clone_model(model, **further)
    except Exception:  # noqa: BLE001 - whatever somebody's own configuration raises; who calls says so
        return None
    if not made.built:
        return None
    ours, theirs = keras_api.weights(model), keras_api.weights(made)
    if [_facts(w) for w in ours] != [_facts(w) for w in theirs]:
        return None  # layers that name their sublayers anew, or that need more than their configuration
    for old, new in zip(ours, theirs, strict=True):
        new.variable.assign(keras_api.to_numpy(old.variable))
    carry_adapted(model, made)
    if keras.__name__ == "keras":  # an input without a name of its own gets its layer's in a clone
        for old, new in zip(model.inputs or [], made.inputs or [], strict=True):
            new.name = old.name
    extras.put(made, extras.of(model))
    for name in _CARRIED:
        if name in vars(model):
            object.__setattr__(made, name, vars(model)[name])
    return made


def _on_device(device_of: Mapping[str, str], layer: Any) -> Any:
    """A layer as it is configured, with its weights on its device."""
    import tensorflow as tf

    made = layer.__class__.from_config(layer.get_config())
    if layer.name in device_of and getattr(layer, "weights", None) and not made.built:
        with tf.device(device_of[layer.name]):
            made.build_from_config(layer.get_build_config())
    return made


def _facts(weight: keras_api.Weight) -> tuple[str, tuple[int, ...], str]:
    return weight.path, tuple(weight.variable.shape), str(weight.variable.dtype)
