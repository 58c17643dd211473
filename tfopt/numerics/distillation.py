"""Losses by which a model learns from another: (what the teacher gave, what the student gives) -> value by row.

Tokens at which the teacher's features are all zero are padding and count nothing.
"""

from collections.abc import Callable
from typing import Literal

import tensorflow as tf

Loss = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
# What an output holds: logits or probabilities of classes, a probability in each value, or any values.
Kind = Literal["logits", "probabilities", "independent", "values"]
_LEAST = 1e-7  # of a probability


def soft_cross_entropy(temperature: float, taught_as: Kind = "logits", found_as: Kind = "logits") -> Loss:
    """Kullback-Leibler divergence of softened logits, times the squared temperature.

    Hinton et al., "Distilling the Knowledge in a Neural Network", https://arxiv.org/abs/1503.02531. Logits, or the
    probabilities of classes, are of shape (batch, classes) or (batch, length, classes).
    """

    def loss(taught: tf.Tensor, found: tf.Tensor) -> tf.Tensor:
        wanted = tf.nn.log_softmax(_as_logits(taught, taught_as) / temperature)
        have = tf.nn.log_softmax(_as_logits(found, found_as) / temperature)
        each = temperature**2 * tf.reduce_sum(tf.exp(wanted) * (wanted - have), -1)
        return each if len(taught.shape) < 3 else _mean_of_tokens(each, _is_token(taught))

    return loss


def soft_binary_cross_entropy(temperature: float) -> Loss:
    """The same for values that are each the probability of something of its own, of shape (batch, ...)."""

    def loss(taught: tf.Tensor, found: tf.Tensor) -> tf.Tensor:
        wanted = tf.nn.sigmoid(_logit(taught) / temperature)
        have = _logit(found) / temperature
        cross = tf.nn.sigmoid_cross_entropy_with_logits(wanted, have)
        least = tf.nn.sigmoid_cross_entropy_with_logits(wanted, _logit(taught) / temperature)
        return temperature**2 * _mean_of_values(cross - least, taught)

    return loss


def squared_error(taught: tf.Tensor, found: tf.Tensor) -> tf.Tensor:
    """Mean squared difference of values of any shape (batch, ...)."""
    wanted = tf.cast(taught, tf.float32)
    return _mean_of_values(tf.square(wanted - tf.cast(found, tf.float32)), wanted)


def hidden_error(taught: tf.Tensor, found: tf.Tensor) -> tf.Tensor:
    """Mean squared difference of hidden states (batch, length, width)."""
    wanted = tf.cast(taught, tf.float32)
    each = tf.reduce_mean(tf.square(wanted - tf.cast(found, tf.float32)), -1)
    return _mean_of_tokens(each, _is_token(wanted))


def divergence(taught: tf.Tensor, found: tf.Tensor) -> tf.Tensor:
    """Kullback-Leibler divergence of attention maps (batch, heads, length, length)."""
    wanted, have = (tf.cast(x, tf.float32) for x in (taught, found))
    each = tf.reduce_sum(wanted * (tf.math.log(wanted + 1e-9) - tf.math.log(have + 1e-9)), -1)
    return _mean_of_tokens(each, _is_token(wanted))


def relation_divergence(taught: tf.Tensor, found: tf.Tensor) -> tf.Tensor:
    """Divergence of the relations of two models' values, (batch, heads, length, size); sizes may differ."""
    wanted = tf.cast(taught, tf.float32)
    tokens = _is_token(wanted)
    mask = tf.cast(tokens[:, :1], tf.float32)
    return divergence(relations(wanted, mask), relations(tf.cast(found, tf.float32), mask))


def relations(values: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """How alike the values of tokens are: softmax of their scaled dot products, (batch, heads, length, length).

    Wang et al., "MiniLM: Deep Self-Attention Distillation", https://arxiv.org/abs/2002.10957.

    Args:
        values: (batch, heads, length, size).
        mask: (batch, 1, length), 1 on tokens; rows of padding become zero.
    """
    size = tf.cast(tf.shape(values)[-1], values.dtype)
    products = tf.matmul(values, values, transpose_b=True) / tf.sqrt(size)
    return tf.nn.softmax(products + (1.0 - mask[:, :, None]) * -1e4) * mask[..., None]


def _as_logits(x: tf.Tensor, kind: Kind) -> tf.Tensor:
    x = tf.cast(x, tf.float32)
    return tf.math.log(tf.maximum(x, _LEAST)) if kind == "probabilities" else x


def _logit(p: tf.Tensor) -> tf.Tensor:
    p = tf.clip_by_value(tf.cast(p, tf.float32), _LEAST, 1.0 - _LEAST)
    return tf.math.log(p) - tf.math.log1p(-p)


def _mean_of_values(each: tf.Tensor, taught: tf.Tensor) -> tf.Tensor:
    """(batch, ...) -> (batch,), over tokens where the shape is one of texts."""
    if len(taught.shape) == 3:
        return _mean_of_tokens(tf.reduce_mean(each, -1), _is_token(taught))
    return tf.reduce_mean(tf.reshape(each, (tf.shape(each)[0], -1)), -1)


def _is_token(features: tf.Tensor) -> tf.Tensor:
    return tf.reduce_any(features != 0, -1)


def _mean_of_tokens(each: tf.Tensor, tokens: tf.Tensor) -> tf.Tensor:
    axes = tf.range(1, tf.rank(each))
    kept = tf.cast(tokens, tf.float32)
    return tf.reduce_sum(each * kept, axes) / tf.maximum(tf.reduce_sum(kept, axes), 1.0)
