"""Stored tensors become weights of a model: names and shapes are checked before any is read."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tfopt._keras import keras_api
from tfopt.errors import ModelFileError
from tfopt.models.families.base import Entry


class Stored(Protocol):
    """Tensors of a checkpoint.

    Attributes:
        shapes: shape by name.
    """

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def __getitem__(self, name: str) -> np.ndarray:
        """A tensor as float32."""


def assign(model: Any, entries: Iterable[Entry], tensors: Stored, *, names: Mapping[str, str], where: Path) -> None:
    """Gives a model the stored weights.

    Args:
        model: of the shape that the checkpoint describes.
        entries: what is stored of it.
        tensors: the stored tensors.
        names: name of an entry -> the name that its tensor has.
        where: the checkpoint, for messages.

    Raises:
        ModelFileError: a tensor of another shape, or without a place.
    """
    variables = {weight.path: weight.variable for weight in keras_api.weights(model)}
    shapes = {path: tuple(int(d) for d in v.shape) for path, v in variables.items()}
    entries = list(entries)
    check_shapes(entries, tensors, shapes, names=names, where=where)
    for entry in entries:
        for target, value in entry.read(tensors[names[entry.theirs]], shapes).items():
            variables[target].assign(value)


def check_shapes(
    entries: Iterable[Entry], tensors: Stored, shapes: Mapping[str, tuple[int, ...]], *, names: Mapping[str, str],
    where: Path,
) -> None:  # fmt: skip
    """Checks the shapes of stored tensors against those of our weights by path; none is read.

    Raises:
        ModelFileError: a tensor of another shape, or without a place.
    """
    for entry in entries:
        name = names[entry.theirs]
        if not set(entry.ours) <= set(shapes):
            raise ModelFileError(f"{where}: tensor {name!r} has no place in the model of the configuration")
        expected = entry.shape(shapes)
        if tensors.shapes[name] != expected:
            raise ModelFileError(
                f"{where}: tensor {name!r} has shape {tensors.shapes[name]}, the configuration asks for {expected}"
            )


def check_names(expected: set[str], stored: set[str], unused: tuple[str, ...], *, where: Path) -> None:
    """Checks that a checkpoint has what a configuration asks for, and nothing else but what is known as unused.

    Raises:
        ModelFileError: a tensor is missing or unknown.
    """
    missing = sorted(expected - stored)
    extra = sorted(n for n in stored - expected if not n.startswith(unused))
    if missing or extra:
        parts = [f"lacks {missing[0]!r}" if missing else "", f"has unknown {extra[0]!r}" if extra else ""]
        counts = f"({len(missing)} missing, {len(extra)} unknown)"
        raise ModelFileError(f"{where} {' and '.join(p for p in parts if p)} {counts}")
