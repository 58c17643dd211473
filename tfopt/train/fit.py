"""Assembles and runs `fit`: optimizer, warm-up and schedule, gradient clipping, seeds, progress."""

import contextlib
import dataclasses
import logging
import math
import time
import typing
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from tfopt._keras import keras_api
from tfopt.errors import InputError, WorkFailedError
from tfopt.schedules import OptimizerName, Rate, RateSchedule, check_choice
from tfopt.train.checkpoints import Checkpoints, Position
from tfopt.train.finite import FiniteWeights
from tfopt.train.optimizers import make_optimizer
from tfopt.train.progress import Progress
from tfopt.train.rates import RateByStep
from tfopt.train.strategy import scope

Data = Callable[[Any, int], Any]
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        epochs: passes over the training data.
        batch_size: records per step, over all replicas together.
        optimizer: a name, see `optimizers.make_optimizer`.
        learning_rate: peak of the schedule.
        schedule: how the rate falls, see `schedules.Rate`.
        power: of the schedule "polynomial", above 0.
        warmup: share of the steps in which the rate grows from near zero, in [0, 1).
        weight_decay: decoupled decay of matrices (Loshchilov and Hutter, https://arxiv.org/abs/1711.05101).
        clip_norm: largest norm of the whole gradient, or 0 for no clipping.
        seed: of initial weights, order and dropout.
        jit_compile: compile the training step with XLA.
        checkpoint_every: optimizer steps from one checkpoint to the next, or 0 for none.
        minutes: after which the training ends, wherever it is; what was trained until then counts. None for no end.
    """

    epochs: int = 3
    batch_size: int = 32
    optimizer: OptimizerName = "adamw"
    learning_rate: float = 5e-5
    schedule: RateSchedule = "cosine"
    power: float = 2.0
    warmup: float = 0.06
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    seed: int = 0
    jit_compile: bool = False
    checkpoint_every: int = 0
    minutes: float | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be 1 or more, got {getattr(self, name)}")
        for name, known in (("optimizer", OptimizerName), ("schedule", RateSchedule)):
            check_choice(name, getattr(self, name), typing.get_args(known))
        for name in ("learning_rate", "power", "minutes"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise InputError(f"{name} must be above 0, got {getattr(self, name)}")
        if not 0 <= self.warmup < 1:
            raise InputError(f"warmup must be in [0, 1), got {self.warmup}")
        if self.weight_decay < 0 or self.clip_norm < 0 or self.checkpoint_every < 0:
            raise InputError("weight_decay, clip_norm and checkpoint_every must be 0 or more")


def seed_everything(model_or_generation: Any, seed: int) -> None:
    """Seeds Python, NumPy, TensorFlow and the Keras generation at hand."""
    generation = (
        model_or_generation
        if isinstance(model_or_generation, str)
        else keras_api.generation_of(model_or_generation)
    )
    keras_api.keras_module(generation).utils.set_random_seed(seed)


def total_steps(records: int, config: TrainConfig) -> int:
    """Optimizer steps of the whole training."""
    return config.epochs * math.ceil(records / config.batch_size)


def fit(
    model: Any,
    data: Data,
    *,
    config: TrainConfig,
    steps: int,
    callbacks: list[Any] | None = None,
    validation: Any = None,
    strategy: Any = None,
    title: str = "train",
    checkpoints: Checkpoints | None = None,
    compile_with: Callable[..., None],
) -> dict[str, list[float]]:
    """Trains a model that gives logits, in place.

    Args:
        model: takes the inputs of `data` and gives logits of shape (batch, classes), or (batch, length, vocabulary)
            with a label at every token.
        data: takes the number of a pass, or a variable that holds it, and how many of its batches are left out, and
            gives a dataset of (inputs, labels), whose order depends on nothing else.
        config: optimizer and schedule.
        steps: optimizer steps in all, see `total_steps`.
        callbacks: further callbacks, for example of a compression technique.
        validation: dataset of (inputs, labels) evaluated after each epoch.
        strategy: the strategy in whose scope the model was made, or None.
        title: name shown with the progress.
        checkpoints: of this training; it goes on from the newest one.
        compile_with: takes the optimizer and `jit_compile`, and compiles the model with its losses, as
            `Task.compile` and `Distiller.compile` do.

    Returns:
        The history: a list of values for each metric, per epoch that was run.

    Raises:
        WorkFailedError: a weight or the loss became NaN; the model keeps the weights of the last good step.
    """
    callbacks = callbacks or []
    with scope(strategy):
        optimizer, rates = _optimizer(model, config, steps)
        compile_with(optimizer, jit_compile=config.jit_compile)
        start = checkpoints.restore(model) if checkpoints is not None else Position()
    number = tf.Variable(start.epoch, dtype=tf.int64, trainable=False)
    if start.step:
        _log.info("%s goes on at step %d of %d", title, start.step, steps)
        for callback in callbacks:
            if hasattr(callback, "go_on"):
                callback.go_on()
    with Progress(title, steps, done=start.step) as progress, contextlib.ExitStack() as stack:
        if checkpoints is not None:
            stack.callback(checkpoints.close)
        # Compression callbacks come before others, so that whatever follows sees the model as it will be.
        kept = [checkpoints] if checkpoints is not None else []
        deadline = _Deadline(config.minutes, title)
        everything = [*rates, FiniteWeights(title), *callbacks, _Passes(number), *kept, progress, deadline]
        history: dict[str, list[float]] = {}
        for batches, first, last in _parts(data, number, start, epochs=config.epochs):
            if deadline.over:
                break
            found = model.fit(
                batches, initial_epoch=first, epochs=last, validation_data=validation, callbacks=everything,
                verbose=0,
            ).history  # fmt: skip
            for name, values in found.items():
                history.setdefault(name, []).extend(float(value) for value in values)
    losses = history.get("loss", [])
    if any(not math.isfinite(loss) for loss in losses):
        raise WorkFailedError(f"{title}: the loss became NaN; lower learning_rate (now {config.learning_rate:g})")
    return history


def _parts(data: Data, number: tf.Variable, start: Position, *, epochs: int) -> Iterator[tuple[Any, int, int]]:
    """Datasets with the first epoch and the one after the last of each: the rest of a pass, and other passes."""
    first = start.epoch
    if start.batch:
        rest = data(first, start.batch)
        if int(rest.cardinality()):
            yield rest, first, first + 1
        first += 1
    if first < epochs:
        number.assign(first)
        yield data(number, 0), first, epochs


class _Passes(keras_api.Callback):
    """Counts passes for the data: a dataset reads the number when Keras begins the next one."""

    def __init__(self, number: tf.Variable) -> None:
        self._number = number
        self._supports_tf_logs = True

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._number.assign(epoch + 1)


class _Deadline(keras_api.Callback):
    """Ends a training when its minutes are over."""

    def __init__(self, minutes: float | None, title: str) -> None:
        self._minutes, self._title = minutes, title
        self._end = math.inf if minutes is None else time.monotonic() + 60 * minutes
        self._supports_tf_logs = True
        self.over = False

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if not self.over and time.monotonic() > self._end:
            self.over = self.model.stop_training = True
            _log.warning("%s ends early: its %g minutes are over", self._title, self._minutes)


def _optimizer(model: Any, config: TrainConfig, steps: int) -> tuple[Any, list[Any]]:
    """The optimizer, and what sets its rate if it does not do so itself."""
    warmup = max(1, round(config.warmup * steps)) if config.warmup else 0
    rate: Any = config.learning_rate
    callbacks: list[Any] = []
    if config.schedule == "cosine" and warmup < steps:
        # Built in, so that nothing custom ends up in a saved model.
        keras = keras_api.keras_module(keras_api.generation_of(model))
        rate = keras.optimizers.schedules.CosineDecay(
            initial_learning_rate=config.learning_rate / max(warmup, 1),
            decay_steps=steps - warmup,
            warmup_target=config.learning_rate if warmup else None,
            warmup_steps=warmup,
        )
    elif config.schedule != "cosine":
        callbacks = [
            RateByStep(Rate(config.schedule, config.learning_rate, warmup, steps=steps, power=config.power))
        ]
    optimizer = make_optimizer(
        model, config.optimizer, rate, weight_decay=config.weight_decay, clip_norm=config.clip_norm
    )
    return optimizer, callbacks
