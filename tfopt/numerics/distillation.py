"""Losses by which a model learns from another: (what the teacher gave, what the student gives) -> value by row.

Tokens at which the teacher's features are all zero are padding and count nothing.
"""

from collections.abc import Callable

import tensorflow as tf

Loss = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def soft_cross_entropy(temperature: float) -> Loss:
    """Kullback-Leibler divergence of softened logits, times the squared temperature.

    Hinton et al., "Distilling the Knowledge in a Neural Network", https://arxiv.org/abs/1503.02531. Logits are of
    shape (batch, classes) or (batch, length, classes).
    """

    def loss(taught: tf.Tensor, found: tf.Tensor) -> tf.Tensor:
        wanted = tf.nn.log_softmax(tf.cast(taught, tf.float32) / temperature)
        have = tf.nn.log_softmax(tf.cast(found, tf.float32) / temperature)
        each = temperature**2 * tf.reduce_sum(tf.exp(wanted) * (wanted - have), -1)
        return each if len(taught.shape) < 3 else _mean_of_tokens(each, _is_token(taught))

    return loss


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


def _is_token(features: tf.Tensor) -> tf.Tensor:
    return tf.reduce_any(features != 0, -1)


def _mean_of_tokens(each: tf.Tensor, tokens: tf.Tensor) -> tf.Tensor:
    axes = tf.range(1, tf.rank(each))
    kept = tf.cast(tokens, tf.float32)
    return tf.reduce_sum(each * kept, axes) / tf.maximum(tf.reduce_sum(kept, axes), 1.0)
