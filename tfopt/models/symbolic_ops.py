"""The few tensor operations that builders need, on symbolic tensors of either Keras generation."""

from typing import Any

import numpy as np

from tfopt._keras import keras_api


class SymbolicOps:
    """Operations that become nodes of a functional model.

    tf_keras turns plain TensorFlow calls into nodes, Keras 3 has `keras.ops`; both save by name.
    """

    def __init__(self, generation: str) -> None:
        self.is_keras3 = generation == "keras"
        keras = keras_api.keras_module(generation)
        policy = keras.config.dtype_policy() if self.is_keras3 else keras.mixed_precision.global_policy()
        self._layers = None if self.is_keras3 or policy.compute_dtype == "float32" else keras.layers
        # What a model answers is best not rounded to 16 bits.
        self.output_type = None if policy.compute_dtype == "float32" else "float32"
        if self.is_keras3:
            self._ops = keras_api.keras_module(generation).ops
        else:
            import tensorflow as tf

            self._ops = tf

    def positions(self, ids: Any) -> Any:
        """0, 1, 2, ... along the second axis of integer `ids` of shape (batch, length)."""
        if self.is_keras3:  # its arange refuses an unknown length; converters fold this to a constant
            return self._ops.cumsum(self._ops.ones_like(ids), axis=1) - 1
        return self._ops.range(self._ops.shape(ids)[1])[None, :]

    def plus(self, x: Any, y: Any) -> Any:
        """The sum, also where only one of them is in 16 bits under a mixed policy, which TensorFlow refuses."""
        return x + y if self._layers is None else self._layers.Add()([x, y])

    def times_mixed(self, x: Any, y: Any) -> Any:
        """The same for the product."""
        return x * y if self._layers is None else self._layers.Multiply()([x, y])

    def zeros_like(self, x: Any) -> Any:
        return self._ops.zeros_like(x)

    def cast(self, x: Any, dtype: str) -> Any:
        return self._ops.cast(x, dtype)

    def matmul(self, a: Any, b: Any) -> Any:
        return self._ops.matmul(a, b)

    def sum(self, x: Any, axis: int) -> Any:
        return self._ops.sum(x, axis=axis) if self.is_keras3 else self._ops.reduce_sum(x, axis=axis)

    def mean(self, x: Any, axis: int) -> Any:
        """The mean over an axis, which stays with size 1."""
        reduce = self._ops.mean if self.is_keras3 else self._ops.reduce_mean
        return reduce(x, axis=axis, keepdims=True)

    def tanh(self, x: Any) -> Any:
        return self._ops.tanh(x)

    def rsqrt(self, x: Any) -> Any:
        return self._ops.rsqrt(x) if self.is_keras3 else self._ops.math.rsqrt(x)

    def cumsum(self, x: Any) -> Any:
        """Sums along the second axis."""
        return self._ops.cumsum(x, axis=1)

    def count_to(self, size: int, like: Any) -> Any:
        """0, 1, ... size - 1 as int32 of shape (1, size), as a node that depends on integer `like` (batch, length).

        A constant would be stored number by number in the model's configuration.
        """
        one = like[:1, :1] * 0 + 1
        return self._ops.cumsum(self._ops.broadcast_to(one, (1, size)), axis=1) - 1

    def hadamard(self, size: int, like: Any) -> Any:
        """Sylvester's matrix (size, size), its own inverse, as a node that depends on integer `like`."""
        found = self.cast(like[:1, :1] * 0 + 1, "float32") * size**-0.5
        for _ in range(size.bit_length() - 1):
            upper, lower = self.concat([found, found]), self.concat([found, found * -1.0])
            found = self.concat([self.transpose(upper), self.transpose(lower)])
        return found

    def cos_sin(self, angles: Any) -> tuple[Any, Any]:
        return self._ops.cos(angles), self._ops.sin(angles)

    def times(self, x: Any, constant: np.ndarray) -> Any:
        """`x` times a small constant, which the model's configuration holds."""
        return x * (constant if self.is_keras3 else self._ops.constant(constant))

    def plus_constant(self, x: Any, constant: np.ndarray) -> Any:
        """`x` plus a small constant, which the model's configuration holds."""
        return x + (constant if self.is_keras3 else self._ops.constant(constant))

    def matmul_constant(self, x: Any, constant: np.ndarray) -> Any:
        """`x` times a small matrix, which the model's configuration holds."""
        matrix = self.cast(constant.astype(np.float32), x.dtype)
        return self._ops.matmul(x, matrix)

    def concat(self, parts: list[Any]) -> Any:
        """Joined along the last axis."""
        return self._ops.concatenate(parts, axis=-1) if self.is_keras3 else self._ops.concat(parts, -1)

    def repeat(self, x: Any, times: int, axis: int) -> Any:
        return self._ops.repeat(x, times, axis=axis)

    def transpose(self, x: Any) -> Any:
        return self._ops.transpose(x)

    def gelu_tanh(self, x: Any) -> Any:
        """The approximation of gelu by tanh, which GPT-2 was trained with."""
        nn = self._ops if self.is_keras3 else self._ops.nn
        return nn.gelu(x, approximate=True)

    def maximum(self, x: Any, y: float) -> Any:
        return self._ops.maximum(x, y)
