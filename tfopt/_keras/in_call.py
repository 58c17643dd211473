"""Runs a function as if it were the call of a layer."""

from collections.abc import Callable
from typing import Any

from tfopt._keras import keras_api


def in_call(model: Any, function: Callable[[], Any], *, training: bool = True) -> Any:
    """What a function returns, while layers inside it see the call of a layer that trains, or does not.

    Args:
        model: tells the generation.
        function: runs layers and operations; those of Keras 3 that are no layers know of training by this alone.
        training: what they see.
    """
    keras = keras_api.keras_module(keras_api.generation_of(model))
    found: list[Any] = []

    class Around(keras.layers.Layer):  # type: ignore[name-defined]
        def call(self, start: Any, training: Any = None) -> Any:
            found.append(function())
            return start

    import tensorflow as tf

    Around(name="around", autocast=False)(tf.zeros([1]), training=training)
    return found[0]
