"""Activations with a fixed range: what is observed of them, and the range that follows."""

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from tfopt._keras import keras_api
from tfopt._keras.replay import remembered

# Far below the largest score of its row, a softmax gives zero on any grid of ours: exp(-12) is 6e-6.
_SOFTMAX_DEPTH = 12.0
# Outputs whose grid the runtime's kernels prescribe: lowest and highest value by bits.
FIXED = {
    ("softmax", 8): (0.0, 255 / 256), ("sigmoid", 8): (0.0, 255 / 256), ("tanh", 8): (-1.0, 127 / 128),
    ("softmax", 16): (-32767 / 32768, 32767 / 32768), ("sigmoid", 16): (-32767 / 32768, 32767 / 32768),
    ("tanh", 16): (-32767 / 32768, 32767 / 32768),
}  # fmt: skip
Kind = Literal["range", "scores", "softmax", "sigmoid", "tanh"]


class ActivationPoint:
    """One activation with a fixed range: what was observed of it.

    The variable holds lowest value, highest value and number of observations. Each replica has one, and all see
    what the whole batch has.
    """

    def __init__(self, layer: Any, key: str, learned: bool, widest: bool) -> None:
        self.widest = widest  # 16 bits have room for every value seen, fewer do better without rare ones
        self.seen = tf.Variable(
            tf.zeros([3]), trainable=False, synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA, name="range",
        )  # fmt: skip
        self.layer = layer
        self.gain = None
        if learned:
            name = "range_gain_" + key.rpartition(":")[2]
            self.gain = keras_api.add_trainable(layer, name, np.zeros(2, np.float32))

    def observe(self, x: tf.Tensor, kind: Kind, momentum: float, active: tf.Tensor | bool) -> None:
        """Counts what passes, once where a layer is computed again for its gradients."""
        remembered(self.layer, lambda: self._count(x, kind, momentum, active))

    def _count(self, x: tf.Tensor, kind: Kind, momentum: float, active: tf.Tensor | bool) -> None:
        x = tf.cast(tf.stop_gradient(x), tf.float32)
        high = tf.reduce_max(x)
        low = tf.reduce_min(tf.reduce_max(x, -1)) - _SOFTMAX_DEPTH if kind == "scores" else tf.reduce_min(x)
        now = _of_all(tf.stack([tf.minimum(tf.maximum(low, tf.reduce_min(x)), 0.0), tf.maximum(high, 0.0)]))
        old = tf.convert_to_tensor(self.seen)
        self.seen.assign(tf.where(active, _joined(old, now, momentum, widest=self.widest), old))

    def forget(self) -> None:
        """Begins anew."""
        self.seen.assign(tf.zeros([3]))

    def now(self) -> tf.Tensor:
        """Lowest value, highest value and number of observations, of shape (3,)."""
        return remembered(self.layer, lambda: tf.convert_to_tensor(self.seen))

    def range(self, seen: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Lowest and highest value of the grid, for what `now` gave."""
        if self.gain is not None:
            gains = tf.exp(tf.cast(keras_api.tf_variable(self.gain), tf.float32))
            return seen[0] * gains[0], seen[1] * gains[1]
        return seen[0], seen[1]

    def value(self) -> tuple[float, float, int]:
        seen = np.asarray(self.seen.read_value())
        gains = np.ones(2) if self.gain is None else np.exp(keras_api.to_numpy(self.gain))
        return float(seen[0] * gains[0]), float(seen[1] * gains[1]), round(float(seen[2]))


def _joined(old: tf.Tensor, now: tf.Tensor, momentum: float, *, widest: bool) -> tf.Tensor:
    """What was seen (lowest value, highest, observations) with one observation (lowest, highest) more."""
    count = old[2] + 1.0
    rate = tf.maximum(1.0 - momentum, 1.0 / count)  # a plain mean until the moving average has warmed up
    mean = old[:2] + rate * (now - old[:2])
    reach = tf.stack([tf.minimum(old[0], now[0]), tf.maximum(old[1], now[1])])
    return tf.concat([reach if widest else mean, [count]], 0)


def folded(seen: Iterable[np.ndarray], momentum: float, *, widest: bool) -> tuple[float, float, int]:
    """What one point would have seen in the end, of what each batch alone showed it, in their order.

    A point that a batch meets several times, in a layer that is called so, counts as often with the mean of these.
    """
    found = tf.zeros([3])
    for values in seen:
        for _ in range(round(float(values[2]))):
            found = _joined(found, tf.constant(values[:2]), momentum, widest=widest)
    low, high, count = found.numpy()
    return float(low), float(high), round(float(count))


def _of_all(now: tf.Tensor) -> tf.Tensor:
    """The lowest and the highest value of all replicas; what can be asked for quickly is a sum."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return now
    own = tf.one_hot(context.replica_id_in_sync_group, context.num_replicas_in_sync)
    every = context.all_reduce(tf.distribute.ReduceOp.SUM, own[:, None] * now)
    return tf.stack([tf.reduce_min(every[:, 0]), tf.reduce_max(every[:, 1])])


def usable(low: float, high: float, symmetric: bool) -> tuple[float, float]:
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric:
        reach = max(-low, high)
        low, high = -reach, reach
    return (low, high) if high - low > 1e-9 else (low, low + 1e-6)


def usable_tensors(low: tf.Tensor, high: tf.Tensor, symmetric: bool) -> tuple[tf.Tensor, tf.Tensor]:
    low, high = tf.minimum(low, 0.0), tf.maximum(high, 0.0)
    if symmetric:
        high = tf.maximum(-low, high)
        low = -high
    return low, tf.where(high - low > 1e-9, high, low + 1e-6)
