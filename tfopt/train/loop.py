"""Passes over data, around steps: callbacks, metrics and validation as in `model.fit`, for any strategy."""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt._keras import keras_api
from tfopt.errors import WorkFailedError
from tfopt.train.ending import Ending
from tfopt.train.finite import FiniteWeights
from tfopt.train.kept import Kept
from tfopt.train.parts import divided
from tfopt.train.step import EvaluationStep, Taken, TrainStep
from tfopt.train.strategy import works_with_others

# What this worker's own data, memory or program is to blame for.
_OWN_FAULTS = (
    tf.errors.InvalidArgumentError, tf.errors.ResourceExhaustedError, tf.errors.DataLossError,
    tf.errors.NotFoundError, tf.errors.PermissionDeniedError, tf.errors.UnimplementedError,
)  # fmt: skip


class Loop:
    """Trains a compiled model as `model.fit` would.

    Args:
        model: of either generation.
        step: how one batch is trained on.
        strategy: of the model, or None.
        callbacks: of Keras, in their order.
        finite: keeps the last good weights, which the model gets back after a bad step; also among the callbacks.
        ending: whether this process wants an early end.
        kept: what is kept beside the weights that are trained.
        keep: writes a checkpoint at once, or None.
        epochs: passes in all.
        steps: of a pass.
        title: of the training, for messages.
    """

    def __init__(
        self,
        model: Any,
        step: TrainStep,
        *,
        strategy: Any,
        callbacks: Sequence[Any],
        finite: FiniteWeights,
        ending: Ending,
        kept: Kept,
        keep: Callable[[], None] | None,
        epochs: int,
        steps: int,
        title: str,
    ) -> None:
        self._model, self._step, self._strategy = model, step, strategy
        self._finite, self._ending, self._kept = finite, ending, kept
        self._keep, self._title = keep, title
        self._record = _Record()
        keras = keras_api.keras_module(keras_api.generation_of(model))
        self._callbacks = keras.callbacks.CallbackList(
            [*callbacks, self._record], add_history=False, model=model, epochs=epochs, steps=steps, verbose=0
        )

    @property
    def history(self) -> dict[str, list[float]]:
        """Name -> value after each pass, of what was counted, evaluated, or told by callbacks."""
        return self._record.history

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Around all passes of a training."""
        self._model.stop_training = False
        self._callbacks.on_train_begin()
        try:
            yield
        except tf.errors.OpError as error:
            if not works_with_others(self._strategy) or isinstance(error, _OWN_FAULTS):
                raise
            raise WorkFailedError(
                f"{self._title}: another worker is gone ({reason(error)}); start all workers again, with "
                "--resume to go on from the last checkpoint"
            ) from error
        if self._ending.wanted[1]:  # since the last step
            self._interrupt()
        self._kept.put()  # before techniques, which see to their masks once more
        self._callbacks.on_train_end()

    def passes(self, data: tf.data.Dataset, epochs: range, evaluate: "Evaluation | None" = None) -> None:
        """Passes over one dataset, until they are over or something wants the end."""
        parts = divided(data, self._strategy)
        self._step.expect(parts.element_spec)
        for epoch in epochs:
            if self._model.stop_training:
                return
            self._model.reset_metrics()
            self._callbacks.on_epoch_begin(epoch)
            logs = self._pass(parts, epoch)
            if evaluate is not None:
                found, over = self._kept.evaluated(evaluate)
                logs |= found
                self._model.stop_training = self._model.stop_training or over
            self._callbacks.on_epoch_end(epoch, logs)

    def _pass(self, parts: Any, epoch: int) -> dict[str, float]:
        logs: dict[str, float] = {}
        for number, part in enumerate(parts):
            self._callbacks.on_train_batch_begin(number)
            taken = self._step(part, ends=self._ending.wanted)
            self._check(taken, f"in batch {number + 1} of epoch {epoch + 1}")
            if not taken.skipped:
                self._kept.after_step()
            logs = as_numbers(taken.logs)
            self._callbacks.on_train_batch_end(number, logs)
            over, interrupted = np.asarray(taken.ends) > 0
            if interrupted:
                self._interrupt()
            if over:
                self._model.stop_training = True
            if self._model.stop_training:
                break
        return logs

    def _interrupt(self) -> None:
        """Keeps what was reached, and does what the program does at the signal; some programs go on."""
        if self._keep is not None:
            self._keep()
        told = self._ending.pass_on()
        if works_with_others(self._strategy) and not told:
            raise WorkFailedError(f"{self._title}: another worker was interrupted")

    def _check(self, taken: Taken, where: str) -> None:
        """Ends the training after a step whose loss or gradient was not finite, with the weights of before."""
        loss, norms = float(taken.loss), np.asarray(taken.norms)
        if np.isfinite(loss) and np.isfinite(norms).all():
            return
        self._finite.give_back()
        paths = {id(w.variable): w.path for w in keras_api.weights(self._model)}
        learned: list[Any] = [self._step.variables[i] for i in self._step.learned]
        broken = [paths.get(id(v), v.name) for v, ok in zip(learned, np.isfinite(norms), strict=True) if not ok]
        of = f"; not finite are the gradients of {', '.join(map(repr, broken[:3]))}" if broken else ""
        of += f" and {len(broken) - 3} more" * (len(broken) > 3)
        raise WorkFailedError(
            f"{self._title}: the loss was {loss:g} {where}{of}. The model has the weights of before. Look at that "
            "batch, or lower the learning rate"
        )


def reason(error: tf.errors.OpError) -> str:
    """Why an operation failed, without the places in a graph that TensorFlow puts before it."""
    return re.sub(r"\{\{.*?\}\}\s*", "", error.message).partition("\n")[0][:200]


class _Record(keras_api.Callback):
    """What the logs of passes hold in the end; the last of the callbacks, since others add to them."""

    def __init__(self) -> None:
        self._supports_tf_logs = True
        self.history: dict[str, list[float]] = {}

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(float(value))


class Evaluation:
    """Evaluates a compiled model on one dataset, as `model.evaluate` would, under its strategy."""

    def __init__(self, model: Any, data: tf.data.Dataset, strategy: Any) -> None:
        self._model, self._parts = model, divided(data, strategy)
        self._step = EvaluationStep(model, strategy=strategy)
        self._step.expect(self._parts.element_spec)

    def __call__(self) -> dict[str, float]:
        self._model.reset_metrics()
        logs: dict[str, Any] = {}
        for part in self._parts:
            logs = self._step(part)
        return as_numbers(logs)


def as_numbers(logs: Any) -> dict[str, float]:
    """Metrics as numbers; those in groups, as Keras 3 has them, by their own names."""
    found: dict[str, float] = {}
    for name, value in logs.items():
        found |= as_numbers(value) if isinstance(value, dict) else {name: float(value)}
    return found
