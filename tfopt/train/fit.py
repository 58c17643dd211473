"""Assembles and runs `fit`: optimizer, warm-up and schedule, gradient clipping, seeds, progress."""

import contextlib
import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfopt._keras import keras_api, training
from tfopt._keras.precision import computes_in_float16
from tfopt.errors import InputError
from tfopt.schedules import Rate, Tracker
from tfopt.train.checkpoints import Checkpoints, Position
from tfopt.train.config import TrainConfig
from tfopt.train.ending import Ending
from tfopt.train.finite import FiniteWeights
from tfopt.train.journal import Journal
from tfopt.train.kept import Kept
from tfopt.train.loop import Evaluation, Loop
from tfopt.train.loss_scale import LossScale
from tfopt.train.memory import tell_memory
from tfopt.train.objectives import Adversarial, TwoDropouts
from tfopt.train.optimizers import make_optimizer
from tfopt.train.progress import Progress
from tfopt.train.rates import RateByStep
from tfopt.train.step import Network, TrainStep
from tfopt.train.strategy import scope
from tfopt.train.trackers import tracked

Data = Callable[[Any, int], Any]
_log = logging.getLogger(__name__)


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
    journal: str | Path | None = None,
    trackers: Sequence[Tracker] = (),
    depths: Mapping[str, int] | None = None,
    network: Network | None = None,
    longest: int | None = None,
    compile_with: Callable[..., None],
) -> dict[str, list[float]]:
    """Trains a model in place.

    Args:
        model: takes the inputs of `data` and gives logits (batch, classes), or (batch, length, vocabulary).
        data: takes the number of a pass, or a variable that holds it, and how many batches are left out, and gives
            a dataset of (inputs, labels), whose order depends on nothing else.
        config: optimizer and schedule.
        steps: optimizer steps in all, see `total_steps`.
        callbacks: further ones, as of a compression technique.
        validation: dataset of (inputs, labels) evaluated after each epoch.
        strategy: the strategy in whose scope the model was made, or None.
        title: name shown with the progress.
        checkpoints: of this training; it goes on from the newest one.
        journal, trackers: folder for what TensorBoard shows, or None; trackers that are told, see `tracked`.
        depths: path of a weight -> layers above it, for `config.layer_decay`.
        longest: sizes that `data` does not tell, as tokens of a text, when memory is estimated; by default of the
            first batch.
        network: how the model is computed where it is not called as a whole: a `structure.recompute.Recomputed`,
            for `config.gradient_checkpointing`, or a `parallel.placed.Placed`.
        compile_with: takes the optimizer and `jit_compile`, and compiles the model with its losses.

    Returns:
        The history: a list of values for each metric, per epoch that was run.

    Raises:
        WorkFailedError: a weight or the loss became NaN; the model keeps the weights of the last good step.
    """
    callbacks = callbacks or []
    with scope(strategy):
        kept = Kept(
            model, average=config.ema, best=config.keep_best, patience=config.patience,
            falls=config.schedule == "plateau", evaluates=validation is not None,
        )  # fmt: skip
        optimizer, rates = _optimizer(model, config, steps, factor=kept.factor)
        compile_with(optimizer, jit_compile=config.jit_compile)
        scale, start = _begun(model, kept, checkpoints)
    number = tf.Variable(start.epoch, dtype=tf.int64, trainable=False)
    if start.step:
        _go_on(callbacks, f"{title} goes on at step {start.step} of {steps}")
    finite = FiniteWeights(title)
    ending = Ending(config.minutes, title, holds_signals=checkpoints is not None)
    with (
        Progress(title, steps, done=start.step, batch_size=config.batch_size) as progress,
        ending,
        contextlib.ExitStack() as stack,
    ):
        if checkpoints is not None:
            stack.callback(checkpoints.close)
        told = stack.enter_context(tracked(trackers, title, dataclasses.asdict(config), sources=callbacks))
        written = [] if checkpoints is None else [checkpoints]
        # Compression callbacks come before others, so that whatever follows sees the model as it will be.
        everything = [
            *rates, finite, *callbacks, _Passes(number), *written, *_journal(journal, config, callbacks), *told,
            progress,
        ]  # fmt: skip
        with scope(strategy):
            step = _step(model, config, strategy, scale=scale, depths=depths, network=network)
            keeps = [*kept.state, *(checkpoints.held(model) if checkpoints is not None else [])]
            first = functools.partial(data, start.epoch, 0)
            tell_memory(title, step, first, config=config, strategy=strategy, keeps=keeps, longest=longest)
            evaluation = None if validation is None else Evaluation(model, validation, strategy)
            loop = Loop(
                model, step, strategy=strategy, callbacks=everything, finite=finite, ending=ending, kept=kept,
                keep=None if checkpoints is None else checkpoints.keep, epochs=config.epochs,
                steps=-(-steps // config.epochs), title=title,
            )  # fmt: skip
            stack.callback(training.sum_gradients_again, model.optimizer)
            with loop.training():
                for batches, epochs in _parts(data, number, start, epochs=config.epochs):
                    loop.passes(batches, epochs, evaluation)
    return loop.history


def _journal(folder: str | Path | None, config: TrainConfig, callbacks: list[Any]) -> list[Any]:
    return [] if folder is None else [Journal(folder, batch_size=config.batch_size, sources=callbacks)]


def _begun(model: Any, kept: Kept, checkpoints: Checkpoints | None) -> tuple[LossScale | None, Position]:
    """What the loss of a compiled model is scaled by, and where the training goes on."""
    scale = None
    if computes_in_float16(model):  # Keras may scale by itself, which knows nothing of parts
        model.optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
        scale = LossScale()
    model.optimizer.build(model.trainable_variables)
    if checkpoints is None:
        return scale, Position()
    checkpoints.hold([*kept.state, *(scale.state if scale is not None else [])])
    return scale, checkpoints.restore(model)


def _go_on(callbacks: list[Any], said: str) -> None:
    """Tells techniques that the training did not begin now, and says so."""
    _log.info(said)
    for callback in callbacks:
        if hasattr(callback, "go_on"):
            callback.go_on()


def _step(
    model: Any, config: TrainConfig, strategy: Any, *, depths: Mapping[str, int] | None, **further: Any
) -> TrainStep:
    if config.gradient_checkpointing and further["network"] is None:
        raise InputError("gradient_checkpointing needs to know the layers: give network")
    objective: Any = None
    if config.r_drop:
        replicas = 1 if strategy is None else strategy.num_replicas_in_sync
        objective = TwoDropouts(model, config.r_drop, replicas=replicas)
    elif config.adversarial:
        objective = Adversarial(model, config.adversarial)
    if objective is not None and further["network"] is not None:
        raise InputError("r_drop and adversarial compute a model twice, as a whole; leave them out here")
    return TrainStep(
        model, strategy=strategy, part_rows=rows_at_once(config, strategy), jit_compile=config.jit_compile,
        clipping=(config.clip, config.clip_norm), rates=_rates_by_depth(model, config, depths), objective=objective,
        **further,
    )  # fmt: skip


def _rates_by_depth(model: Any, config: TrainConfig, depths: Mapping[str, int] | None) -> list[float] | None:
    """The share of the learning rate that each trainable variable has."""
    if config.layer_decay == 1.0:
        return None
    if depths is None:
        raise InputError("layer_decay needs to know the layers: give depths")
    paths = {id(weight.variable): weight.path for weight in keras_api.weights(model)}
    return [config.layer_decay ** depths.get(paths.get(id(v), ""), 0) for v in model.trainable_variables]


def rows_at_once(config: TrainConfig, strategy: Any) -> int | None:
    """Most rows that a replica computes at once, where they are not all that it gets, else None.

    Raises:
        InputError: a batch that cannot be divided, or a step that XLA cannot compile.
    """
    if config.jit_compile and strategy is not None:
        raise InputError("jit_compile is for one replica: XLA cannot compile what several do together")
    replicas = 1 if strategy is None else strategy.num_replicas_in_sync
    parts = replicas * config.accumulate
    if config.batch_size % parts:
        raise InputError(
            f"batch_size {config.batch_size} cannot be divided by {replicas} replicas and {config.accumulate} "
            f"parts of each (accumulate); take {-(-config.batch_size // parts) * parts}"
        )
    return None if config.accumulate == 1 else config.batch_size // parts


def _parts(data: Data, number: tf.Variable, start: Position, *, epochs: int) -> Iterator[tuple[Any, range]]:
    """Datasets with the epochs of each: the rest of a pass, and other passes."""
    first = start.epoch
    if start.batch:
        yield data(first, start.batch), range(first, first + 1)  # without batches it is evaluated all the same
        first += 1
    if first < epochs:
        number.assign(first)
        yield data(number, 0), range(first, epochs)


class _Passes(keras_api.Callback):
    """Counts passes for the data: a dataset reads the number when Keras begins the next one."""

    def __init__(self, number: tf.Variable) -> None:
        self._number = number
        self._supports_tf_logs = True

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._number.assign(epoch + 1)


def _optimizer(model: Any, config: TrainConfig, steps: int, *, factor: Any) -> tuple[Any, list[Any]]:
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
            RateByStep(Rate(config.schedule, config.learning_rate, warmup, steps=steps, power=config.power), factor)
        ]
    optimizer = make_optimizer(model, config.optimizer, rate, weight_decay=config.weight_decay)
    return optimizer, callbacks
