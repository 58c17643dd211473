"""Ends a training at the step in which a weight became NaN or infinite, with the weights from before."""

from typing import Any

import numpy as np
import tensorflow as tf

from tfopt._keras import keras_api
from tfopt.errors import WorkFailedError


class FiniteWeights(keras_api.Callback):
    """Keras callback that looks at every weight after every step, in either Keras generation.

    `TerminateOnNaN` of Keras looks at the loss of the batch that comes next: the last batch has none, and behind a
    ReLU a broken model may have a loss of 0. Here the training ends in the step itself, and the model gets back
    the weights that it had before that step (before that execution, where `steps_per_execution` is above 1).

    It costs one pass over the weights per step, and memory for two more copies of them at most. Let it be the first
    of the callbacks, so that the others do not meet what it keeps from them.

    Args:
        title: of the training, for the message.

    Raises:
        WorkFailedError: from `fit`, when a weight is no longer finite; the weight, how many of its values, the
            epoch and the batch are named.
    """

    def __init__(self, title: str = "train") -> None:
        self._title, self._epoch = title, 0
        self._weights: list[keras_api.Weight] = []
        self._good: list[tf.Tensor] = []
        self._look: Any = None

    def on_train_begin(self, logs: Any = None) -> None:
        learned = {id(v) for v in self.model.trainable_variables}
        self._weights = [
            w for w in keras_api.weights(self.model)
            if (id(w.variable) in learned or w.layer.trainable)
            and tf.as_dtype(keras_api.tf_variable(w.variable).dtype).is_floating
        ]  # fmt: skip
        variables = [keras_api.tf_variable(w.variable) for w in self._weights]

        def look() -> tuple[list[tf.Tensor], tf.Tensor]:
            values = [tf.convert_to_tensor(v) for v in variables]
            return values, tf.stack([tf.reduce_all(tf.math.is_finite(value)) for value in values])

        self._look = tf.function(look, autograph=False)
        self._good, finite = self._look()
        if not finite.numpy().all():
            self._fail(self._good, finite.numpy(), "before the first batch")

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        values, finite = self._look()
        if finite.numpy().all():
            self._good = values
            return
        self.give_back()
        self._fail(
            values, finite.numpy(), f"in batch {batch + 1} of epoch {self._epoch + 1}; the model has the weights "
            "of before. Look at that batch, or lower the learning rate",
        )  # fmt: skip

    def give_back(self) -> None:
        """Gives the model the weights that were the last good ones."""
        for weight, value in zip(self._weights, self._good, strict=True):
            weight.variable.assign(value)

    def on_train_end(self, logs: Any = None) -> None:
        self._weights, self._good, self._look = [], [], None

    def _fail(self, values: list[tf.Tensor], finite: np.ndarray, where: str) -> None:
        first = int(np.flatnonzero(~finite)[0])
        value = values[first].numpy()
        broken = int((~np.isfinite(value.astype(np.float32))).sum())
        self._good = []
        raise WorkFailedError(
            f"{self._title}: weight {self._weights[first].path!r} became NaN or infinite ({broken} of {value.size} "
            f"values) {where}"
        )
