"""The few tensor operations that builders need, on symbolic tensors of either Keras generation."""

from typing import Any

from tfopt import keras_api


class SymbolicOps:
    """Operations that become nodes of a functional model.

    tf_keras turns plain TensorFlow calls into nodes, Keras 3 has `keras.ops`; both save by name.
    """

    def __init__(self, generation: str) -> None:
        self._keras3 = generation == "keras"
        if self._keras3:
            self._ops = keras_api.keras_module(generation).ops
        else:
            import tensorflow as tf

            self._ops = tf

    def positions(self, ids: Any) -> Any:
        """0, 1, 2, ... along the second axis of integer `ids` of shape (batch, length)."""
        if self._keras3:  # its arange refuses an unknown length; converters fold this to a constant
            return self._ops.cumsum(self._ops.ones_like(ids), axis=1) - 1
        return self._ops.range(self._ops.shape(ids)[1])[None, :]

    def zeros_like(self, x: Any) -> Any:
        return self._ops.zeros_like(x)

    def cast(self, x: Any, dtype: str) -> Any:
        return self._ops.cast(x, dtype)

    def matmul(self, a: Any, b: Any) -> Any:
        return self._ops.matmul(a, b)

    def sum(self, x: Any, axis: int) -> Any:
        return self._ops.sum(x, axis=axis) if self._keras3 else self._ops.reduce_sum(x, axis=axis)

    def maximum(self, x: Any, y: float) -> Any:
        return self._ops.maximum(x, y)
