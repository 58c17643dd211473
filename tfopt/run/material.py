"""What the techniques of a recipe's variant take from its run."""

from pathlib import Path
from typing import Any

from tfopt._keras.loading import load_model
from tfopt.models.encoder import INPUTS

_IMPORTANCE_BATCH, _IMPORTANCE_BATCHES = 32, 32


class Material:
    """What the techniques of a variant take from the run; see `recipe.techniques.Material`."""

    def __init__(self, steps: int, passes: int, *, task: Any, baseline: Path) -> None:
        self.steps, self.passes = steps, steps * passes
        self._task, self._baseline = task, baseline

    def batches(self) -> Any:
        return self._task.batches(_IMPORTANCE_BATCH, "train").take(_IMPORTANCE_BATCHES)

    def samples(self) -> dict[str, Any]:
        samples = self._task.calibration()
        return {name: samples[name] for name in INPUTS if name in samples}

    def teacher(self) -> Any:
        return load_model(self._baseline)


def without(section: Any, layers: list[str]) -> Any:
    """A technique's section that leaves layers out which do not stay."""
    if not layers or "exclude" not in type(section).model_fields:
        return section
    return section.model_copy(update={"exclude": [*(section.exclude or []), *layers]})
