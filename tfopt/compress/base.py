"""What every technique shares: the contract.

A technique is a module of this folder and a row of `techniques.TECHNIQUES`. The module has what `TechniqueModule`
lists; the row says when it works and what it goes with. Nothing else in the package knows single techniques.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from tfopt._base.spread import ALONE, Workers
from tfopt._keras.selection import Skipped

_ATTRIBUTE = "_tfopt_attached"


class Lessons(Protocol):
    """What a model is trained on where that is not the task's own labels.

    Attributes:
        asked: what is asked of the teacher, as a short name: of one teacher and the same data, lessons that ask the
            same are the same.
    """

    asked: str

    def compile(self, optimizer: Any, **settings: Any) -> None: ...

    def teach(
        self, data: Any, cache: str | Path | None = None, *, epoch: Any = None, workers: Workers = ALONE
    ) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What `prepare` returns; unpacks as the pair (model, callbacks).

    Attributes:
        model: the model to train, often the one that was passed in.
        callbacks: callbacks to pass to `fit`.
        skipped: what the technique leaves alone, with the reason.
        helpers: names of layers that are there for the training only; other techniques leave them out.
        lessons: what compiles the model and makes its data, where labels are not all that counts.
        state: variables of the training that are no weights, which a checkpoint must hold.
        enter: what is done to the inputs of the model where it is not called as a whole, or None.
        files: what goes beside the finished model, asked for once it is trained: name -> content.
    """

    model: Any
    callbacks: list[Any]
    skipped: list[Skipped] = dataclasses.field(default_factory=list)
    helpers: list[str] = dataclasses.field(default_factory=list)
    lessons: Lessons | None = None
    state: list[Any] = dataclasses.field(default_factory=list)
    enter: Callable[[Any], Any] | None = None
    files: Callable[[], dict[str, bytes]] = dict

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.callbacks))


@dataclasses.dataclass(frozen=True)
class Option:
    """One thing that a technique could do to one place of a model.

    Attributes:
        kind: "layer", "pooling", "heads", "neurons", "channels", "width", "rank", "zeros" or "bits".
        place: the number of the layer, the name of the group, or the path of the weight.
        value: 1 for a layer or its early pooling, the share of units or zeros, the rank, or the bits.
        shares: path of a weight -> what is left of its elements.
        computes: whether these weights are still multiplied by for every token.
    """

    kind: str
    place: str
    value: float
    shares: dict[str, float] = dataclasses.field(default_factory=dict, hash=False, compare=False)
    computes: bool = True

    @property
    def paths(self) -> set[str]:
        """The weights that it is about."""
        return set(self.shares) or {self.place}

    @property
    def key(self) -> str:
        return f"{self.kind}|{self.place}|{self.value:g}"


class TechniqueModule(Protocol):
    """What the module of a technique has.

    Attributes:
        Config: the class of its configuration, a frozen dataclass.
        options: places of a model and what could be done to them, each place's own from the mildest to the
            strongest.
    """

    Config: type

    def prepare(self, model: Any, config: Any) -> Prepared:
        """What to train, and the callbacks to pass to `fit`; what works before training is done here."""

    def finish(self, model: Any) -> Any:
        """Ends what `prepare` or a callback attached: a plain Keras model, no wrapper, no custom class."""

    def at_once(self, model: Any, config: Any) -> Any:
        """The model as it is after all of the training, without any; only of techniques that can."""

    def is_attached(self, model: Any) -> bool:
        """Whether there is something for `finish` to end."""

    def explain(self, model: Any) -> dict[str, str]:
        """Path of a matrix -> what the technique would do to it, or why it does nothing."""

    def options(self, model: Any) -> Iterator[Option]: ...


def attach(model: Any, technique: str, what: Any) -> None:
    """Remembers on the model object, not in its configuration, that a technique works on it."""
    object.__setattr__(model, _ATTRIBUTE, {**attached(model), technique: what})


def attached(model: Any) -> dict[str, Any]:
    """Name of a technique -> what it remembers, for those that work on the model."""
    found: dict[str, Any] = getattr(model, _ATTRIBUTE, {})
    return found


def detach(model: Any, technique: str) -> Any:
    """Forgets that a technique works on the model; returns what it remembered, or None."""
    left = attached(model)
    what = left.get(technique)
    object.__setattr__(model, _ATTRIBUTE, {name: value for name, value in left.items() if name != technique})
    return what
