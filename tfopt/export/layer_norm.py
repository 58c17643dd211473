"""Traces layer norms with fewer passes over the data.

Keras writes the norm as `x * (gamma * rsqrt(v)) + (beta - mean * gamma * rsqrt(v))`, which a converter keeps
as six passes over a whole tensor. With the mean taken off first, as in the definition (Ba et al.,
https://arxiv.org/abs/1607.06450), there are five, and the second reduction reads what the first one wrote.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tfopt import keras_api


@contextlib.contextmanager
def few_passes(model: Any) -> Iterator[None]:
    """While entered, calls of the model's plain last-axis layer norms take the short form."""
    changed = []
    try:
        for _, layer in keras_api.walk(model):
            if type(layer).__name__ == "LayerNormalization" and _is_plain(layer):
                object.__setattr__(layer, "call", _short_form(layer))
                changed.append(layer)
        yield
    finally:
        for layer in changed:
            object.__delattr__(layer, "call")


def _is_plain(layer: Any) -> bool:
    """Last axis only, no variant of the formula, nothing put on the instance by somebody else."""
    axis = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    rank = len(layer.gamma.shape) if layer.gamma is not None else 0
    return rank == 1 and len(axis) == 1 and not getattr(layer, "rms_scaling", False) and "call" not in vars(layer)


def _short_form(layer: Any) -> Any:
    def call(x: tf.Tensor, *args: Any, **kwargs: Any) -> tf.Tensor:
        if layer.axis not in (-1, [-1], len(x.shape) - 1, [len(x.shape) - 1]):
            return type(layer).call(layer, x, *args, **kwargs)
        centered = x - tf.reduce_mean(x, -1, keepdims=True)
        variance = tf.reduce_mean(centered * centered, -1, keepdims=True)
        scaled = centered * tf.math.rsqrt(variance + layer.epsilon) * tf.cast(layer.gamma, x.dtype)
        return scaled if layer.beta is None else scaled + tf.cast(layer.beta, x.dtype)

    return call
