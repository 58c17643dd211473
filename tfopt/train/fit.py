"""Assembles and runs `fit`: AdamW, warm-up and cosine decay, gradient clipping, seeds, progress."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from tfopt._keras import keras_api
from tfopt.errors import InputError, WorkFailedError
from tfopt.train.finite import FiniteWeights
from tfopt.train.progress import Progress
from tfopt.train.strategy import scope


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        epochs: passes over the training data.
        batch_size: records per step, over all replicas together.
        learning_rate: peak of the schedule.
        warmup: share of the steps in which the rate grows from near zero, in [0, 1).
        weight_decay: decoupled decay of matrices (Loshchilov and Hutter, https://arxiv.org/abs/1711.05101).
        clip_norm: largest norm of the whole gradient, or 0 for no clipping.
        seed: of initial weights, order and dropout.
        jit_compile: compile the training step with XLA.
    """

    epochs: int = 3
    batch_size: int = 32
    learning_rate: float = 5e-5
    warmup: float = 0.06
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    seed: int = 0
    jit_compile: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise InputError(f"learning_rate must be above 0, got {self.learning_rate}")
        if not 0 <= self.warmup < 1:
            raise InputError(f"warmup must be in [0, 1), got {self.warmup}")
        if self.weight_decay < 0 or self.clip_norm < 0:
            raise InputError("weight_decay and clip_norm must be 0 or more")


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
    data: Any,
    *,
    config: TrainConfig,
    steps: int,
    callbacks: list[Any] | None = None,
    validation: Any = None,
    strategy: Any = None,
    title: str = "train",
    compile_with: Callable[..., None],
) -> dict[str, list[float]]:
    """Trains a model that gives logits, in place.

    Args:
        model: takes the inputs of `data` and gives logits of shape (batch, classes), or (batch, length, vocabulary)
            with a label at every token.
        data: dataset of (inputs, labels), visited once per epoch.
        config: optimizer and schedule.
        steps: optimizer steps in all, see `total_steps`.
        callbacks: further callbacks, for example of a compression technique.
        validation: dataset of (inputs, labels) evaluated after each epoch.
        strategy: the strategy in whose scope the model was made, or None.
        title: name shown with the progress.
        compile_with: takes the optimizer and `jit_compile`, and compiles the model with its losses, as
            `Task.compile` and `Distiller.compile` do.

    Returns:
        The history: a list of values per epoch for each metric.

    Raises:
        WorkFailedError: a weight or the loss became NaN; the model keeps the weights of the last good step.
    """
    keras = keras_api.keras_module(keras_api.generation_of(model))
    with scope(strategy):
        optimizer = _optimizer(keras, model, config, steps=steps)
        compile_with(optimizer, jit_compile=config.jit_compile)
    with Progress(title, steps) as progress:
        # Compression callbacks come before others, so that whatever follows sees the model as it will be.
        everything = [FiniteWeights(title), *(callbacks or []), progress]
        history = model.fit(
            data, epochs=config.epochs, validation_data=validation, callbacks=everything, verbose=0
        ).history
    losses = history.get("loss", [])
    if any(not math.isfinite(loss) for loss in losses):
        raise WorkFailedError(f"{title}: the loss became NaN; lower learning_rate (now {config.learning_rate:g})")
    return {name: [float(v) for v in values] for name, values in history.items()}


def _optimizer(keras: Any, model: Any, config: TrainConfig, steps: int) -> Any:
    warmup = max(1, round(config.warmup * steps)) if config.warmup else 0
    rate: Any = config.learning_rate
    if warmup < steps:
        # Built in, so that nothing custom ends up in a saved model.
        rate = keras.optimizers.schedules.CosineDecay(
            initial_learning_rate=config.learning_rate / max(warmup, 1),
            decay_steps=steps - warmup,
            warmup_target=config.learning_rate if warmup else None,
            warmup_steps=warmup,
        )
    optimizer = keras.optimizers.AdamW(
        rate, weight_decay=config.weight_decay, global_clipnorm=config.clip_norm or None
    )
    # Norms and biases are not decayed.
    optimizer.exclude_from_weight_decay(
        var_list=[w.variable for w in keras_api.weights(model) if len(w.variable.shape) < 2]
    )
    return optimizer
