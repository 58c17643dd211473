"""The table of techniques: when each works, and what it goes with. Loads no TensorFlow.

A row's name is the section of a recipe's variant. The order of rows is the order in which techniques are
prepared and their callbacks run: rounding comes last, it sees the weights as the others leave them. They are
finished in reverse.
"""

import dataclasses
import importlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, cast

if TYPE_CHECKING:
    from tfopt.compress.base import TechniqueModule

Stage = Literal["at once", "before", "while", "after"]


@dataclasses.dataclass(frozen=True)
class Technique:
    """One technique.

    Attributes:
        name: its section in a variant of a recipe.
        module: its module in `tfopt.compress`; see `base.TechniqueModule`.
        stages: when it may work: "at once", without any training; "before" training, on the model that is trained
            then; "while" it goes on; "after" it, where `finish` makes another model.
        public: its names in `tfopt` and `tfopt.callbacks`.
        spoils: techniques that do not work in the same training, since this one undoes them.
        why: the reason, with `{other}` and `{variant}`.
        leaves: what later training without it takes away: values on a "grid", "zeros", or "" for nothing.
    """

    name: str
    module: str
    stages: tuple[Stage, ...]
    public: tuple[str, ...]
    spoils: tuple[str, ...] = ()
    why: str = ""
    leaves: Literal["grid", "zeros", ""] = ""

    def load(self) -> "TechniqueModule":
        """The module; it needs TensorFlow."""
        return cast("TechniqueModule", importlib.import_module(f"tfopt.compress.{self.module}"))

    def stage(self, when: str | None, epochs: int) -> Stage | None:
        """When it works in a variant that says `when` ("before", "during" or nothing); None without training."""
        if "before" in self.stages and when != "during":
            return "before"
        if epochs:
            return "while"
        return "at once" if "at once" in self.stages else None


TECHNIQUES = (
    Technique(
        "shrink", "shrink", ("before", "while", "after"),
        public=("shrink", "callbacks.StructuredPruning", "ShrinkConfig"),
        spoils=("factorize", "lora", "prune", "cluster", "quantize"),
        why="units are cut after the training, which would undo what {other} does; put {other} into a variant with "
        "start = {variant!r}, or shrink with when = 'before'",
    ),
    Technique("factorize", "low_rank", ("before",), public=("factorize",)),
    Technique("distill", "distill", ("while", "after"), public=("Distiller",)),
    Technique(
        "lora", "lora", ("while",), public=("LoraConfig",),
        spoils=("prune", "cluster", "quantize"),
        why="with lora the weights are frozen, and its products would then leave what {other} gave them; "
        "put {other} into a variant with start = {variant!r}",
    ),
    Technique(
        "prune", "prune", ("at once", "while"), public=("prune", "callbacks.MagnitudePruning", "PruneConfig"),
        leaves="zeros",
    ),
    Technique(
        "cluster", "cluster", ("at once", "while"), public=("cluster", "callbacks.WeightClustering"), leaves="grid",
    ),
    Technique(
        "quantize", "quantize", ("while",),
        public=("quantize_aware", "QuantizeConfig", "callbacks.QuantizationMonitor"),
        leaves="grid",
    ),
)  # fmt: skip
NAMES = tuple(technique.name for technique in TECHNIQUES)


def chosen(sections: dict[str, Any]) -> Iterator[tuple[Technique, Any]]:
    """Every technique that has a section, once for each of its sections, in the order of the table."""
    for technique in TECHNIQUES:
        found = sections.get(technique.name)
        for section in found if isinstance(found, list) else [found]:
            if section is not None:
                yield technique, section
