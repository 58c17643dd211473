"""Sets learning rates that no schedule of Keras gives.

Keras's own have no warm-up but for the cosine, and one of our own would end up in saved models; a callback leaves
nothing behind.
"""

from typing import Any

from tfopt._keras import keras_api
from tfopt.schedules import Rate


class RateByStep(keras_api.Callback):
    """Sets the rate of an optimizer before each step, which counts from the optimizer's first."""

    def __init__(self, rate: Rate, factor: Any = None) -> None:
        self._rate, self._factor = rate, factor  # a variable that multiplies it, or None
        self._supports_tf_logs = True

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        value = self._rate(keras_api.learning_step(self.model))
        self.model.optimizer.learning_rate = value if self._factor is None else value * float(self._factor.numpy())
