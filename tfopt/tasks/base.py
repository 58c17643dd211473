"""The contract of a task: what the pipeline asks of it. A task is a file here and a row of `TASKS`."""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import tensorflow as tf

from tfopt._keras import keras_api
from tfopt.data import batches as batching
from tfopt.data.features import Feature
from tfopt.data.text_facts import TextFacts
from tfopt.numerics.metrics import Scored
from tfopt.recipe import Recipe
from tfopt.recipe.sections import ExportSection
from tfopt.structure.outputs import loss_of_labels

Log = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """What artifacts are measured on.

    Attributes:
        inputs: one row for timing, several rows for throughput; name -> array.
        data: packed folder whose "validation" split holds labelled rows, or None.
        text: token ids of running text, or None.
        window: with it, how many tokens a model sees at once.
        score: loaded artifact -> what its answers are worth, or None where data or text tell it; can be pickled.
    """

    inputs: dict[str, np.ndarray]
    data: Path | None = None
    text: np.ndarray | None = None
    window: int | None = None
    score: Callable[[Any], Scored] | None = None


class Task(abc.ABC):
    """A recipe's data, model and measure of quality.

    Args:
        recipe: what is run.
        data: the folder of the packed data.

    Attributes:
        features: what a record has, for `data.features`.
        metrics: names of the figures of quality, as columns of the report; the first one is judged by.
    """

    features: ClassVar[tuple[Feature, ...]]
    metrics: ClassVar[tuple[str, ...]]
    samples_count = 64  # rows that artifacts are compared with their Keras model on

    def __init__(self, recipe: Recipe, data: Path) -> None:
        self.recipe, self.data = recipe, data

    @abc.abstractmethod
    def check_inputs(self) -> list[Path]:
        """Checks that what the recipe reads is there and fits, before anything is written; returns those files."""

    def texts_at(self, rows: Sequence[int]) -> dict[int, str]:
        """Number of a held-out row, as `held_out` has them -> its text, where it can be told."""
        return {}

    @property
    def mixed(self) -> dict[str, str]:
        """Further files of training texts by the split that each becomes."""
        return {f"train-{number}": path for number, path in enumerate(self.recipe.data.mix, 1)}

    def drawn_from(self, split: str) -> str | dict[str, float]:
        """The split that batches come from, or what is mixed for a training, with weights."""
        if split != "train" or not self.mixed:
            return split
        return {split: 1.0, **dict(zip(self.mixed, self.recipe.data.mix.values(), strict=True))}

    @abc.abstractmethod
    def pack(self, log: Log) -> dict[str, Any]:
        """Writes the data's folder and returns facts about it, among them "train_records"."""

    @abc.abstractmethod
    def build(self, facts: dict[str, Any]) -> Any:
        """The model before its training."""

    def compile(self, model: Any, optimizer: Any, jit_compile: bool, *, smoothing: float = 0.0) -> None:
        """Compiles a model with the losses of the task; by default cross-entropy with labels, smoothed or not."""
        keras = keras_api.keras_module(keras_api.generation_of(model))
        model.compile(
            optimizer=optimizer, loss=loss_of_labels(keras, self.kind_of_output(model), smoothing=smoothing),
            metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")], jit_compile=jit_compile,
        )  # fmt: skip

    def text_facts(self, facts: dict[str, Any]) -> TextFacts | None:
        """What answers to texts stand for, once data was packed; None where the model answers none."""
        return None

    def kind_of_output(self, model: Any) -> Literal["logits", "probabilities"]:
        """What the output of a model of the task holds."""
        return "logits"

    def kept_tokens(self) -> np.ndarray | None:
        """Ids of the tokens that stay where the vocabulary is cut to the training texts, once data was packed."""
        return None

    @abc.abstractmethod
    def batches(self, batch_size: int, split: str, **order: Any) -> tf.data.Dataset:
        """Batches of (inputs, labels) of one split; shuffle, epoch and skip are those of `data.batches.batches`."""

    def counted(self, batches: tf.data.Dataset) -> tf.data.Dataset:
        """The batches as the losses of `compile` take them, whose mean over rows is that of the batch."""
        return batches

    @abc.abstractmethod
    def lengths(self, section: ExportSection) -> list[int] | None:
        """The sequence lengths to export."""

    @abc.abstractmethod
    def held_out(self) -> HeldOut:
        """What artifacts are measured on."""

    @abc.abstractmethod
    def calibration(self) -> dict[str, np.ndarray]:
        """Training texts for ranges and rounding."""

    def samples(self) -> dict[str, np.ndarray]:
        """Held-out texts for the comparison of artifacts with their Keras model."""
        return batching.samples(self.data, self.samples_count, split="validation")

    def notes(self, facts: dict[str, Any]) -> list[str]:
        """Sentences about the data that a reader of the report should know."""
        return []


def widened(value: np.ndarray, length: int) -> np.ndarray:
    """Rows cut or repeated along the sequence to exactly `length`, so that timing sees no padding."""
    repeats = -(-length // value.shape[1])
    return np.tile(value, (1, repeats))[:, :length] if value.shape[1] != length else value
