"""Where the models of a run are computed while they learn: on one device, in stages, or split."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from tfopt._keras.devices import devices
from tfopt.errors import InputError
from tfopt.parallel.pipeline import Pipeline
from tfopt.parallel.split import Split, TensorParallel, split
from tfopt.parallel.stages import placed
from tfopt.recipe import Recipe
from tfopt.recipe.sections import TrainSection
from tfopt.structure.recompute import Recomputed


@dataclasses.dataclass(frozen=True)
class Placement:
    """A model as it learns.

    Attributes:
        model: whose weights learn: that of the run, or its parts.
        network: how it is computed, or None as a whole.
        told: what the history says of it besides, name -> values.
    """

    model: Any
    network: Any = None
    told: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    _split: Split | None = None

    def finish(self, model: Any) -> None:
        """Gives the model of the run what its parts learned."""
        if self._split is not None:
            self._split.write_to(model)


def devices_of(recipe: Recipe, strategy: Any) -> list[str]:
    """The devices that a recipe's trainings need, none where one is enough; before TensorFlow starts.

    Raises:
        InputError: a strategy that has the devices for itself, or too few devices.
    """
    count = max(_count(section) for section in (recipe.train, *(variant.train for variant in recipe.variants)))
    if count == 1:
        return []
    if strategy is not None:
        raise InputError(
            "stages, tensor_parallel and data_parallel take the devices of one process by themselves: leave out "
            "replicas, strategy and TF_CONFIG"
        )
    return devices(count, "devices")


def before_techniques(model: Any, section: TrainSection, names: Sequence[str]) -> Any:
    """The model, with the weights of each stage on its device."""
    return placed(model, names[: section.stages]) if section.stages > 1 and section.epochs else model


def placement(
    model: Any, section: TrainSection, names: Sequence[str], *, enter: Callable[[Any], Any] | None = None
) -> Placement:
    """How a model is computed while it learns.

    Args:
        model: of the run, with its techniques.
        section: how it is trained.
        names: of devices, from `devices_of`.
        enter: what a technique does to its inputs.
    """
    if section.gradient_checkpointing:
        return Placement(model, Recomputed(model, enter))
    each = max(section.stages, section.tensor_parallel)
    lanes = [names[start : start + each] for start in range(0, each * section.data_parallel, each)]
    if section.stages > 1:
        pipeline = Pipeline(model, lanes, micro_batches=section.micro_batches, enter=enter)
        return Placement(model, pipeline, {"pipeline_idle_share": [pipeline.idle_share]})
    if section.tensor_parallel > 1:
        parts = split(model, lanes[0])
        return Placement(parts.model, TensorParallel(parts, lanes), _split=parts)
    return Placement(model)


def _count(section: TrainSection) -> int:
    return max(section.stages, section.tensor_parallel) * section.data_parallel
