"""The trainings of a run: what a recipe says of them, handed to the training loop."""

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfopt.compress.base import Lessons
from tfopt.data.noise import noisy
from tfopt.data.tokenizers import load_tokenizer, noise_ids
from tfopt.errors import InputError
from tfopt.recipe import Recipe
from tfopt.recipe.sections import TrainSection
from tfopt.run.folder import CHECKPOINTS, JOURNAL, RunFolder
from tfopt.run.placement import before_techniques, placement
from tfopt.structure.depth import depth_of_weights
from tfopt.train import TrainConfig, fit
from tfopt.train.checkpoints import Checkpoints
from tfopt.train.fit import rows_at_once, total_steps
from tfopt.train.strategy import is_chief, works_with_others

_VALIDATION_BATCH = 64
_NOT_OF_THE_LOOP = {
    "tensorboard", "trackers", "label_smoothing", "learning_rate", "stages", "micro_batches", "tensor_parallel",
    "data_parallel", "token_noise",
}  # fmt: skip


def train_config(recipe: Recipe, section: TrainSection) -> TrainConfig:
    """How one of a recipe's models is trained."""
    values = section.model_dump(exclude=_NOT_OF_THE_LOOP)
    return TrainConfig(**values, learning_rate=recipe.rate(section), seed=recipe.seed)


class Trainings:
    """Trains the models of a run on its data.

    Args:
        recipe: of the run.
        folder: of the run, for checkpoints and what is kept of teachers.
        task: gives the data and the losses.
        strategy: in whose scope the models are made, or None.
        devices: from `placement.devices_of`.
    """

    def __init__(
        self, recipe: Recipe, folder: RunFolder, *, task: Any, strategy: Any, devices: Sequence[str]
    ) -> None:
        self._recipe, self._folder, self._task, self._strategy = recipe, folder, task, strategy
        self._writes = is_chief(strategy)
        inputs = recipe.model.inputs or {}
        self._named = {
            "ids": inputs.get("input_ids", "input_ids"),
            "mask": inputs.get("attention_mask", "attention_mask"),
        }
        sections = [recipe.train, *(variant.train for variant in recipe.variants)]
        self._devices = devices
        for section in sections:
            if section.epochs:
                rows_at_once(train_config(recipe, section), strategy)

    def placed(self, model: Any, section: TrainSection) -> Any:
        """The model, with its weights on the devices that are to train it."""
        return before_techniques(model, section, self._devices)

    def fit(
        self,
        model: Any,
        section: TrainSection,
        *,
        data: dict[str, Any],
        callbacks: list[Any],
        title: str,
        lessons: Lessons | None = None,
        cache: bool = False,
        state: list[Any] | None = None,
        enter: Callable[[Any], Any] | None = None,
    ) -> dict[str, Any]:
        """Trains a model in place, and returns the history.

        Args:
            model: of the run.
            section: how it is trained.
            data: facts about the data.
            callbacks: of techniques.
            title: of the model in the run.
            lessons: of a teacher, or None.
            cache: whether what the teacher answers is kept in the run's folder.
            state: variables of techniques, which a checkpoint must hold.
            enter: what a technique does to the model's inputs.
        """
        config = train_config(self._recipe, section)
        if section.r_drop and self._task.kind_of_output(model) != "logits":
            raise InputError(f"train.r_drop is for models that give logits, and {title} gives probabilities")
        where = placement(model, section, self._devices, enter=enter)
        plain = functools.partial(self._task.compile, where.model, smoothing=section.label_smoothing)
        validation = self._task.batches(_VALIDATION_BATCH, "validation")
        checkpoints = None
        if config.checkpoint_every:
            place = self._folder.path / CHECKPOINTS / title
            checkpoints = Checkpoints(place, every=config.checkpoint_every, extra=state or [], writes=self._writes)
        kept = None
        if cache and lessons is not None and not works_with_others(self._strategy):
            kept = self._folder.lessons(f"{lessons.asked}-{config.batch_size}")
        history = fit(
            where.model, functools.partial(self._batches, section, lessons, kept), config=config,
            steps=total_steps(data["train_records"], config), callbacks=callbacks,
            validation=lessons.teach(validation) if lessons is not None else self._task.counted(validation),
            strategy=self._strategy, title=title, checkpoints=checkpoints,
            compile_with=plain if lessons is None else lessons.compile,
            depths=depth_of_weights(model) if config.layer_decay < 1 else None,
            longest=min(data.get("train_longest", math.inf), self._recipe.data.max_length),
            network=where.network,
            journal=self._folder.path / JOURNAL / title if section.tensorboard and self._writes else None,
            trackers=section.trackers if self._writes else (),
        )  # fmt: skip
        where.finish(model)
        return where.told | history

    def _batches(
        self, section: TrainSection, lessons: Lessons | None, cache: Path | None, epoch: Any, skip: int
    ) -> tf.data.Dataset:
        """Batches of one pass, or of what is left of it, with what a teacher makes of them."""
        batch_size, noise = section.batch_size, section.token_noise
        if lessons is None or cache is None:
            found = self._task.batches(batch_size, "train", shuffle=True, epoch=epoch, skip=skip)
            if noise:
                others, kept = noise_ids(load_tokenizer(self._task.data))
                found = noisy(
                    found, rate=noise, others=others, kept=kept, seed=self._recipe.seed, epoch=epoch, first=skip,
                    **self._named,
                )  # fmt: skip
            return self._task.counted(found) if lessons is None else lessons.teach(found)
        whole = self._task.batches(batch_size, "train", shuffle=True, epoch=0)
        return lessons.teach(whole, cache, epoch=epoch, workers=self._recipe.workers.made()).skip(skip)
