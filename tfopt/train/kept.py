"""Which weights a training ends with: the last, an average of them, or those of the best pass."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfopt._keras import keras_api
from tfopt.errors import InputError

JUDGED_BY = "val_loss"


class Average:
    """Exponential moving average of the weights (Polyak and Juditsky, https://doi.org/10.1137/0330046).

    Keras's own writes the average into the model at the end of every `fit`, so that a training cannot go on from
    the middle. Here the model trains with its weights, and has the average when it is evaluated and at the end.

    Args:
        model: whose trainable weights are averaged.
        decay: of the average by a step, in (0, 1); smaller in the first steps, so that they do not weigh more.

    Attributes:
        state: variables, which a checkpoint must hold: the memory of the weights once more.
    """

    def __init__(self, model: Any, decay: float) -> None:
        self._variables = [keras_api.tf_variable(v) for v in model.trainable_variables]
        self._averages = [tf.Variable(v, trainable=False, name="average") for v in self._variables]
        self._steps = tf.Variable(0.0, trainable=False, name="averaged_steps")
        self.state = [*self._averages, self._steps]

        def add() -> None:
            self._steps.assign_add(1.0)
            share = 1.0 - tf.minimum(decay, self._steps / (self._steps + 10.0))
            for average, variable in zip(self._averages, self._variables, strict=True):
                average.assign(average + tf.cast(share, variable.dtype) * (variable - average))

        def swap() -> None:
            for average, variable in zip(self._averages, self._variables, strict=True):
                old = tf.identity(variable)
                variable.assign(average)
                average.assign(old)

        self.add = tf.function(add, autograph=False)
        self._swap = tf.function(swap, autograph=False)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """While entered, the model has the average."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def put(self) -> None:
        """Gives the model the average for good."""
        for average, variable in zip(self._averages, self._variables, strict=True):
            variable.assign(tf.convert_to_tensor(average))


class Best:
    """The pass with the lowest validation loss, and its weights where they are kept.

    Args:
        model: that is trained.
        keeps: whether its weights are kept.
        patience: passes in a row that are no better, after which the training should end; None for no end.
        falls: whether the learning rate is halved after each pass that is no better.

    Attributes:
        state: variables, which a checkpoint must hold.
        factor: of the learning rate.
    """

    def __init__(self, model: Any, *, keeps: bool, patience: int | None, falls: bool) -> None:
        self._patience, self._falls = patience, falls
        self._variables = [w.variable for w in keras_api.weights(model)] if keeps else []
        self._kept = [tf.Variable(keras_api.tf_variable(v), trainable=False, name="best") for v in self._variables]
        self._lowest = tf.Variable(math.inf, trainable=False, name="lowest_loss")
        self._waited = tf.Variable(0, trainable=False, name="passes_since")
        self.factor = tf.Variable(1.0, trainable=False, name="rate_factor")
        self.state: Sequence[Any] = [*self._kept, self._lowest, self._waited, self.factor]

    def note(self, logs: Mapping[str, float]) -> None:
        """Takes note of how a pass was; the model has the weights that were evaluated."""
        if logs[JUDGED_BY] < float(self._lowest.numpy()):
            self._lowest.assign(logs[JUDGED_BY])
            self._waited.assign(0)
            for kept, variable in zip(self._kept, self._variables, strict=True):
                kept.assign(tf.convert_to_tensor(keras_api.tf_variable(variable)))
            return
        self._waited.assign_add(1)
        if self._falls:
            self.factor.assign(self.factor * 0.5)

    @property
    def over(self) -> bool:
        """Whether so many passes were no better that the training should end."""
        return self._patience is not None and int(self._waited.numpy()) >= self._patience

    def put(self) -> bool:
        """Gives the model the best weights; False where there are none."""
        if not self._kept or not math.isfinite(float(self._lowest.numpy())):
            return False
        for kept, variable in zip(self._kept, self._variables, strict=True):
            keras_api.tf_variable(variable).assign(tf.convert_to_tensor(kept))
        return True


class Kept:
    """What a training keeps beside the weights that it works on; arguments are those of `Average` and `Best`.

    Attributes:
        state: variables, which a checkpoint must hold.
        factor: of the learning rate, or None.
    """

    def __init__(
        self, model: Any, *, average: float, best: bool, patience: int | None, falls: bool, evaluates: bool
    ) -> None:
        self._average = Average(model, average) if average else None
        judges = best or falls or patience is not None
        if judges and not evaluates:
            raise InputError("keep_best, patience and the schedule 'plateau' need validation data")
        self._best = Best(model, keeps=best, patience=patience, falls=falls) if judges else None
        self.state = [v for part in (self._average, self._best) if part is not None for v in part.state]
        self.factor = None if self._best is None else self._best.factor

    def after_step(self) -> None:
        if self._average is not None:
            self._average.add()

    def evaluated(self, evaluate: Callable[[], dict[str, float]]) -> tuple[dict[str, float], bool]:
        """Evaluates what would be kept; returns what was found, and whether the training should end."""
        with self._average.in_place() if self._average is not None else contextlib.nullcontext():
            found = {f"val_{name}": value for name, value in evaluate().items()}
            if self._best is not None:
                self._best.note(found)
        return found, self._best is not None and self._best.over

    def put(self) -> None:
        """Gives the model the weights that it ends with."""
        if (self._best is None or not self._best.put()) and self._average is not None:
            self._average.put()
