"""Where Keras keeps each variable in a weights file: `layers/dense/vars/0`, the same for equal models.

The names come from Keras's own walk over a model, which is asked to save into nothing.
"""

import importlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from tfopt._keras import keras_api


class Placed(NamedTuple):
    """One array of a weights file.

    Attributes:
        name: in the file.
        path: of the weight as `keras_api.weights` has it; the name in the file for what is no weight: seeds.
        full_name: the variable's own name, as a SavedModel keeps it.
        variable: of Keras, or None for what is no weight.
        value: of what is no weight.
    """

    name: str
    path: str
    full_name: str
    variable: Any
    value: Any = None


def placed(model: Any) -> Iterator[Placed]:
    """Every array that a weights file of the model has, in its order."""
    generation = keras_api.generation_of(model)
    layers = {id(layer): layer for _, layer in [("", model), *keras_api.walk(model)]}
    visits = _Visits({key: len(keras_api.own_variables(layer)) for key, layer in layers.items()})
    library = importlib.import_module(f"{generation}.src.saving.saving_lib")
    optimizer, compiled = getattr(model, "optimizer", None), getattr(model, "_compile_metrics", None)
    library._save_state(model, _recorder(library, visits), None, "", visits)
    paths = {id(weight.variable): weight.path for weight in keras_api.weights(model)}
    skipped = {id(part) for part in (optimizer, compiled) if part is not None}
    for key, place, entry in visits.found:
        if key in skipped or place.split("/")[0] in ("optimizer", "_compile_metrics", "metrics"):
            continue
        own = keras_api.own_variables(layers[key]) if key in layers else []
        for number, (name, value) in enumerate(entry.items()):
            file_name = f"{place}/vars/{name}" if place else f"vars/{name}"
            if number < len(own) and id(own[number]) in paths:
                variable = own[number]
                yield Placed(file_name, paths[id(variable)], full_name=_full_name(variable), variable=variable)
            else:
                yield Placed(file_name, file_name, full_name=file_name, variable=None, value=np.asarray(value))


def _full_name(variable: Any) -> str:
    return str(keras_api.tf_variable(variable).name.partition(":")[0])


class _Visits(set):
    """What Keras notes as visited: right after it has saved an object, which tells whose the last entry was.

    Args:
        layers: id of a layer -> how many variables of its own it has; their values are not kept.
    """

    def __init__(self, layers: dict[int, int]) -> None:
        super().__init__()
        self._layers = layers
        self.found: list[tuple[int, str, dict[str, Any]]] = []
        self.last: tuple[str, dict[str, Any]] | None = None

    def add(self, key: Any) -> None:
        super().add(key)
        if self.last is not None:
            if len(self.last[1]) <= self._layers.get(key, -1):
                self.last = self.last[0], dict.fromkeys(self.last[1])
            self.found.append((key, *self.last))
            self.last = None


def _recorder(library: Any, visits: _Visits) -> Any:
    class Recorder(library.H5IOStore):
        """A weights file that keeps entries instead of writing them."""

        def __init__(self) -> None:
            """Opens nothing."""

        def __bool__(self) -> bool:
            return True

        def make(self, path: str, metadata: Any = None) -> dict[str, Any]:
            entry: dict[str, Any] = {}
            visits.last = (path, entry)
            return entry

    return Recorder()
