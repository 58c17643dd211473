"""Choosing weights of a model by name or layer type."""

import dataclasses
import difflib
import fnmatch
from collections.abc import Sequence
from typing import Any

from tfopt._keras import keras_api
from tfopt._keras.keras_api import Weight
from tfopt.errors import InputError

Pattern = str | type
Patterns = Pattern | Sequence[Pattern] | None
_SHOWN = 12  # names in a message


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A weight that a technique left alone, and why."""

    path: str
    reason: str


def as_patterns(patterns: Patterns) -> list[Pattern]:
    """A single pattern or a sequence of them as a list; None gives an empty list."""
    if patterns is None:
        return []
    return [patterns] if isinstance(patterns, str | type) else list(patterns)


class Selection:
    """Decides by `include` and `exclude` which weights of one model are meant.

    A pattern is a layer class, a class name (``"MultiHeadAttention"``) or a shell-style name pattern
    (``"*/attention/*"``); it also matches everything inside a matching layer.

    Args:
        model: a built model.
        include: only weights that match one of these are meant; all if None.
        exclude: weights that match one of these are not meant, whatever `include` says.

    Raises:
        InputError: a pattern that matches nothing in the model.
    """

    def __init__(self, model: Any, include: Patterns = None, exclude: Patterns = None) -> None:
        self._layers = dict(keras_api.walk(model))
        self._include, self._exclude = as_patterns(include), as_patterns(exclude)
        self.weights = keras_api.weights(model)
        for name, patterns in (("include", self._include), ("exclude", self._exclude)):
            for pattern in patterns:
                if not any(self.matches(weight, pattern) for weight in self.weights):
                    raise InputError(self._no_match(name, pattern))
        for pattern in self._include:
            if all(self._excluded(w) for w in self.weights if self.matches(w, pattern)):
                raise InputError(f"include and exclude contradict: all that {pattern!r} includes is excluded")

    def included_by_name(self, weight: Weight) -> bool:
        """Whether an `include` pattern names this weight or a layer around it."""
        return any(self.matches(weight, p) for p in self._include)

    def reason_to_skip(self, weight: Weight) -> str | None:
        """None if the weight is meant, else the reason in a few words."""
        if self._excluded(weight):
            return "excluded"
        if self._include and not self.included_by_name(weight):
            return "not included"
        return None

    def _excluded(self, weight: Weight) -> bool:
        return any(self.matches(weight, p) for p in self._exclude)

    def matches(self, weight: Weight, pattern: Pattern) -> bool:
        """Whether the pattern names this weight, its layer or a layer around it."""
        around = self._around(weight)
        if isinstance(pattern, type):
            return any(isinstance(layer, pattern) for _, layer in around)
        names = [weight.path, weight.name] + [n for path, layer in around for n in (path, layer.name)]
        if any(fnmatch.fnmatchcase(name, pattern) for name in names):
            return True
        return any(type(layer).__name__ == pattern for _, layer in around)

    def _around(self, weight: Weight) -> list[tuple[str, Any]]:
        """The owning layer and the layers that hold it, with their paths."""
        parts = weight.layer_path.split("/")
        paths = ["/".join(parts[: i + 1]) for i in range(len(parts))]
        found = [(path, self._layers[path]) for path in paths if path in self._layers]
        return found or [(weight.layer_path, weight.layer)]

    def _no_match(self, name: str, pattern: Pattern) -> str:
        around = [pair for weight in self.weights for pair in self._around(weight)]
        paths = list(dict.fromkeys(path for path, _ in around))
        kinds = list(dict.fromkeys(type(layer).__name__ for _, layer in around))
        text = pattern if isinstance(pattern, str) else pattern.__name__
        near = difflib.get_close_matches(text, [*paths, *kinds], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        shown = [*paths[:_SHOWN], f"and {len(paths) - _SHOWN} more"] if len(paths) > _SHOWN + 1 else paths
        return (
            f"{name} pattern {text!r} matches no layer with weights of this model{hint} "
            f"It has the layers {', '.join(shown)} of the classes {', '.join(kinds)}"
        )
