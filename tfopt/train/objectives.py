"""What is made of a batch while a model learns: its loss, and losses that keep it from learning by heart."""

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfopt._keras import keras_api, training
from tfopt._keras.layer_calls import original_call, swapped
from tfopt.errors import InputError

# (inputs, labels, weights of rows) -> the loss as Keras has it, divided by the number of replicas, and the answer.
Objective = Callable[[Any, Any, Any], tuple[tf.Tensor, Any]]


@dataclasses.dataclass(frozen=True)
class Plain:
    """The loss that a model is compiled with."""

    model: Any

    def __call__(self, x: Any, y: Any, weight: Any) -> tuple[tf.Tensor, Any]:
        answer = self.model(x, training=True)
        return training.loss(self.model, x, y, answer=answer, weight=weight, training=True), answer


@dataclasses.dataclass(frozen=True)
class TwoDropouts:
    """R-Drop (Wu et al., https://arxiv.org/abs/2106.14448): two masks of dropout are to give one answer.

    The mean of the losses of two passes, plus `share` times half the divergence of one from the other and back.

    Attributes:
        model: that gives logits of classes.
        share: of the divergence, above 0.
        replicas: the model is trained by.
    """

    model: Any
    share: float
    replicas: int

    def __call__(self, x: Any, y: Any, weight: Any) -> tuple[tf.Tensor, Any]:
        plain = Plain(self.model)
        (one, answer), (other, second) = plain(x, y, weight), plain(x, y, weight)
        first = answer
        if not isinstance(first, dict):
            first, second, weight = {"": first}, {"": second}, {"": weight}
        weights = weight if isinstance(weight, dict) else dict.fromkeys(first, weight)
        each = [_divergence(first[name], second[name], weight=weights.get(name)) for name in first]
        apart = tf.add_n(each) / self.replicas
        return (one + other) / 2.0 + self.share * tf.cast(apart, one.dtype), answer


class Adversarial:
    """Adversarial steps in embedding space (Miyato et al., https://arxiv.org/abs/1605.07725).

    The mean of the loss and of that with the token embeddings of each text moved by `length` the way that makes it
    worse most quickly. Each text is moved by itself, so that it does not matter how a batch is divided.

    Args:
        model: with one table of tokens, which looks ids up and nothing else.
        length: of the move, as a share of the length of a text's embeddings, above 0.

    Raises:
        InputError: a model without a table.
    """

    def __init__(self, model: Any, length: float) -> None:
        keras = keras_api.keras_module(keras_api.generation_of(model))
        tables = [layer for _, layer in keras_api.walk(model) if isinstance(layer, keras.layers.Embedding)]
        if not tables:
            raise InputError(
                f"model {model.name!r} has no table of embeddings, in which adversarial steps are taken"
            )
        self._plain, self._length = Plain(model), length
        self._table = max(tables, key=lambda table: table.input_dim)
        self._call = original_call(self._table)
        self._now = threading.local()  # replicas are threads

    def __call__(self, x: Any, y: Any, weight: Any) -> tuple[tf.Tensor, Any]:
        with swapped(self._table, {"call": self._moved_call}):
            self._now.move, self._now.seen = None, []
            with tf.GradientTape() as tape:
                loss, answer = self._plain(x, y, weight)
            seen = self._now.seen
            if len(seen) != 1:
                raise InputError(
                    f"layer {self._table.name!r} is called {len(seen)} times in a pass, so adversarial steps would "
                    "move more than the tokens of a text"
                )
            (gradient,) = tape.gradient(loss, seen)
            if gradient is None:
                raise InputError(
                    f"the loss does not depend on table {self._table.name!r}: nothing can be moved there"
                )
            axes = list(range(1, len(gradient.shape)))
            steep = tf.cast(gradient, tf.float32)
            # Padding, on which nothing depends, has no length.
            counts = tf.cast(tf.reduce_any(steep != 0, -1, keepdims=True), tf.float32)
            size = self._length * tf.norm(tf.cast(seen[0], tf.float32) * counts, axis=axes, keepdims=True)
            # The square root of zero has no gradient, but a text that nothing depends on does not move.
            steep *= tf.math.rsqrt(tf.maximum(tf.reduce_sum(steep * steep, axes, keepdims=True), 1e-30))
            self._now.move = tf.stop_gradient(tf.cast(size * steep, gradient.dtype))
            worse, _ = self._plain(x, y, weight)
        return (loss + worse) / 2.0, answer

    def _moved_call(self, ids: Any, *args: Any, **kwargs: Any) -> Any:
        found = self._call(ids, *args, **kwargs)
        self._now.seen.append(found)
        return found if self._now.move is None else found + self._now.move


def _divergence(one: tf.Tensor, other: tf.Tensor, weight: Any) -> tf.Tensor:
    """Half of what logits of shape (batch, ..., classes) differ in, both ways; a mean over what counts."""
    first, second = (tf.nn.log_softmax(tf.cast(x, tf.float32)) for x in (one, other))
    each = 0.5 * tf.reduce_sum((tf.exp(first) - tf.exp(second)) * (first - second), -1)
    if weight is None:
        return tf.reduce_mean(each)
    counts = tf.cast(weight, tf.float32)
    for _ in range(len(each.shape) - len(counts.shape)):
        counts = counts[..., None]
    return tf.reduce_mean(each * counts)
