"""Traces layers under names of their own, by which their weights are found in a file."""

import contextlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tfopt._keras import keras_api
from tfopt._keras.layer_calls import Call, Replaced, original_call
from tfopt.tflite.owners import Owners


@contextlib.contextmanager
def scopes(model: Any, owners: Owners) -> Iterator[None]:
    """While entered, what a layer computes bears its scope; other calls have to be in place before."""
    replaced = Replaced()
    layers = {path.rpartition("/")[0]: layer for path, layer in _owned(model)}
    try:
        for path, scope in owners.scopes.items():
            if path in layers:
                replaced.put(layers[path], "call", _scoped(original_call(layers[path]), scope))
        yield
    finally:
        replaced.give_back()


def _owned(model: Any) -> Iterator[tuple[str, Any]]:
    return ((weight.path, weight.layer) for weight in keras_api.weights(model))


def _scoped(original: Call, scope: str) -> Call:
    def call(*args: Any, **kwargs: Any) -> Any:
        with tf.name_scope(f"{scope}/"):  # the slash: as it stands, in no other scope and with no number
            return original(*args, **kwargs)

    return call
