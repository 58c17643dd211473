"""Units whose weights are zero: which they are, and a model in which some are."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from tfopt._keras import keras_api
from tfopt._keras.input_facts import draw, facts_of, size_to_try
from tfopt._keras.keras_io import call, inputs_of, takes_length
from tfopt.errors import VerificationError
from tfopt.structure.groups import Group, Slices, Structure, unit_view
from tfopt.structure.width import narrow_norms

TOLERANCE = 1e-5  # of outputs, relative to the largest


def alive(group: Group, values: Mapping[str, np.ndarray]) -> np.ndarray:
    """Whether any weight of a unit that could show in an output is not zero."""
    found = np.zeros(group.units, bool)
    for place in group.slices:
        if "moving_" not in place.path:
            found |= (unit_view(values[place.path], place, group.units) != 0).any(1)
    return found


def touched(groups: Iterable[Group]) -> set[str]:
    return {s.path for g in groups for s in g.slices if "moving_" not in s.path}


def clear(array: np.ndarray, place: Slices, units: int, gone: np.ndarray) -> None:
    """Sets the slices of some units to zero, in place."""
    shape = array.shape
    view = array.reshape(*shape[: place.axis], place.outer, units, place.inner, *shape[place.axis + 1 :])
    view[(slice(None),) * (place.axis + 1) + (gone,)] = 0


def samples_of(model: Any, length: int) -> dict[str, np.ndarray]:
    """Two random rows of a model's inputs by name; 0 and 1 for a float of each token, which may be its weight."""
    inputs = inputs_of(model)
    size = length if takes_length(model, inputs, length) else size_to_try(model, inputs)
    found = draw(inputs, facts_of(model, inputs, size), rows=2, size=size)
    for name, spec in inputs.specs.items():
        if len(spec.shape) == 2 and spec.shape[1] is None and spec.dtype.is_floating:
            found[name] = (found[name] > 0).astype(found[name].dtype)
    return found


def compare(model: Any, structure: Structure, kept: Mapping[str, np.ndarray], made: Any) -> None:
    """Checks the outputs against those of the model with the cut units' weights at zero, norms over what stays.

    Raises:
        VerificationError: named "outputs".
    """
    inputs, samples = inputs_of(model), samples_of(model, structure.trace.length)
    variables = {w.path: w.variable for w in keras_api.weights(model)}
    groups = [g for g in structure.groups if g.name in kept]
    before = {path: keras_api.to_numpy(variables[path]).copy() for path in touched(groups)}
    masked = {path: value.copy() for path, value in before.items()}
    for group in groups:
        gone = np.setdiff1d(np.arange(group.units), kept[group.name])
        for place in (s for s in group.slices if s.path in masked):
            clear(masked[place.path], place, group.units, gone=gone)
    norms = []
    try:
        for group in groups:
            if group.kind == "width":
                norms.append(narrow_norms(model, structure, group, kept=kept[group.name], made=made))
        for path, value in masked.items():
            variables[path].assign(value)
        expected = {name: value.numpy() for name, value in call(model, inputs, samples).items()}
    finally:
        for replaced in norms:
            replaced.give_back()
        for path, value in before.items():
            variables[path].assign(value)
    found = {name: value.numpy() for name, value in call(made, inputs_of(made), samples).items()}
    for name, value in expected.items():
        check_same(name, found[name], value)


def check_same(name: str, found: np.ndarray, expected: np.ndarray) -> None:
    """Checks an output of a smaller model.

    Raises:
        VerificationError: named "outputs".
    """
    off = float(np.abs(found - expected).max())
    limit = TOLERANCE * max(1.0, float(np.abs(expected).max()))
    if not off <= limit or math.isnan(off):
        raise VerificationError("outputs", f"{name!r} of the smaller model differs by {off:.3g}, not {limit:.3g}")
