"""Traces layer norms with fewer passes over the data.

Keras writes the norm as `x * (gamma * rsqrt(v)) + (beta - mean * gamma * rsqrt(v))`, which a converter keeps
as six passes over a whole tensor. With the mean taken off first, as in the definition (Ba et al.,
https://arxiv.org/abs/1607.06450), there are five, and the second reduction reads what the first one wrote.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from tfopt._keras import keras_api
from tfopt.quantization.calls import is_plain_norm, norm_call


@contextlib.contextmanager
def few_passes(model: Any) -> Iterator[None]:
    """While entered, calls of the model's plain last-axis layer norms take the short form."""
    changed = []
    try:
        for _, layer in keras_api.walk(model):
            if type(layer).__name__ == "LayerNormalization" and is_plain_norm(layer):
                object.__setattr__(layer, "call", norm_call(layer, lambda x, name: x))
                changed.append(layer)
        yield
    finally:
        for layer in changed:
            object.__delattr__(layer, "call")
