"""Models that compute or store in half precision, as models that do neither.

Converters, quantization and comparisons need float32. Under a policy such as "mixed_bfloat16" the variables are in
float32 already, and only the policies of layers change; variables of 16 bits need a model made anew.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt._keras import extras, keras_api
from tfopt._keras.adapted import carry_adapted, follow_weights

_HALVES = ("float16", "bfloat16")
_POLICIES = (*_HALVES, "mixed_float16", "mixed_bfloat16")
_POLICY, _CACHED = "_dtype_policy", "_compute_dtype_object"


def computes_narrow(model: Any) -> bool:
    """Whether any layer computes in 16 bits."""
    return any(str(getattr(layer, "compute_dtype", "")) in _HALVES for layer in _layers(model))


def computes_in_float16(model: Any) -> bool:
    """Whether any layer computes in float16, in which small gradients vanish."""
    return any(str(getattr(layer, "compute_dtype", "")) == "float16" for layer in _layers(model))


def stores_narrow(model: Any) -> bool:
    """Whether any weight is stored in 16 bits."""
    return any(_dtype(weight) in _HALVES for weight in keras_api.weights(model))


def widen(model: Any) -> None:
    """Lets every layer compute in float32, in place; its variables stay what they are."""
    for layer in _layers(model):
        if str(getattr(layer, "compute_dtype", "")) in _HALVES:
            _set_policy(layer, _float32(layer))
    follow_weights(model)


@contextlib.contextmanager
def widened(model: Any) -> Iterator[None]:
    """While entered, every layer computes in float32."""
    narrow = [layer for layer in _layers(model) if str(getattr(layer, "compute_dtype", "")) in _HALVES]
    before = [vars(layer)[_POLICY] for layer in narrow]
    try:
        widen(model)
        yield
    finally:
        for layer, policy in zip(narrow, before, strict=True):
            _set_policy(layer, policy)
        follow_weights(model)


def float32_copy(model: Any) -> Any | None:
    """A model with the same layers and weights, all of it in float32; None where its configuration gives none."""
    keras = keras_api.keras_module(keras_api.generation_of(model))
    try:
        with default_policy(keras):
            made = type(model).from_config(_as_float32(model.get_config()))
    except Exception:  # noqa: BLE001 - whatever somebody's own configuration raises; who calls says so
        return None
    ours, theirs = keras_api.weights(model), keras_api.weights(made)
    if [_shape(w) for w in ours] != [_shape(w) for w in theirs] or stores_narrow(made):
        return None
    for old, new in zip(ours, theirs, strict=True):
        new.variable.assign(np.asarray(keras_api.to_numpy(old.variable), np.float32))
    carry_adapted(model, made)
    extras.put(made, extras.of(model))
    return made


def _layers(model: Any) -> list[Any]:
    return [model, *(layer for _, layer in keras_api.walk(model))]


def _float32(layer: Any) -> Any:
    keras = keras_api.keras_module(keras_api.generation_of(layer))
    return keras.DTypePolicy("float32") if keras.__name__ == "keras" else keras.mixed_precision.Policy("float32")


def _set_policy(layer: Any, policy: Any) -> None:
    object.__setattr__(layer, _POLICY, policy)
    if _CACHED in vars(layer):  # tf_keras
        object.__setattr__(layer, _CACHED, tf.as_dtype(policy.compute_dtype))


@contextlib.contextmanager
def default_policy(keras: Any, name: str = "float32") -> Iterator[None]:
    """While entered, layers that are made without a policy of their own get this one."""
    which = keras.config if keras.__name__ == "keras" else keras.mixed_precision
    get, put = (
        (which.dtype_policy, which.set_dtype_policy)
        if keras.__name__ == "keras"
        else (which.global_policy, which.set_global_policy)
    )
    before = get()
    put(name)
    try:
        yield
    finally:
        put(before)


def _as_float32(config: Any) -> Any:
    """A configuration with policies and types of 16 bits replaced."""
    if isinstance(config, dict):
        return {k: "float32" if _names_policy(k, v) else _as_float32(v) for k, v in config.items()}
    if isinstance(config, list | tuple):
        return type(config)(_as_float32(value) for value in config)
    return config


def _names_policy(key: str, value: Any) -> bool:
    """Whether an entry is the type of a layer: a name, or a policy with one."""
    if key != "dtype":
        return False
    name = value.get("config", {}).get("name") if isinstance(value, dict) else value
    return name in _POLICIES


def _shape(weight: keras_api.Weight) -> tuple[str, tuple[int, ...]]:
    return weight.path, tuple(weight.variable.shape)


def _dtype(weight: keras_api.Weight) -> str:
    return str(weight.variable.dtype).rpartition(".")[2].replace("<dtype: '", "").replace("'>", "")
