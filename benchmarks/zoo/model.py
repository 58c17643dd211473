"""What a model of the zoo is."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Values = dict[str, np.ndarray]
Build = Callable[[Any], tuple[Any, Values]]
ROWS = 16


@dataclasses.dataclass(frozen=True)
class Entry:
    """A model that the operations are tried on.

    Attributes:
        name: of the model.
        build: a Keras module -> a model with random weights, and 16 rows of inputs that mean something to it.
        generations: those that can build it.
        senseless: operation -> why it is not asked for.
        lengths: to export.
    """

    name: str
    build: Build
    generations: tuple[str, ...] = ("tf_keras", "keras")
    senseless: Mapping[str, str] = dataclasses.field(default_factory=dict)
    lengths: tuple[Any, ...] | None = None


def ids(limit: int, length: int, seed: int = 0) -> np.ndarray:
    """Token ids below a limit, of texts of all lengths, padded with zeros."""
    rng = np.random.default_rng(seed)
    found = rng.integers(1, limit, (ROWS, length))
    found[np.arange(length)[None] >= rng.integers(max(1, length // 2), length + 1, (ROWS, 1))] = 0
    return found.astype(np.int32)


def reals(*shape: int, seed: int = 0) -> np.ndarray:
    """Numbers about zero."""
    return np.random.default_rng(seed).standard_normal((ROWS, *shape)).astype(np.float32)


def pictures(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Smooth pictures with values from 0 to 255."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    phase = rng.uniform(0, 6, (ROWS, 1, 1, channels, 3))
    wave = np.sin(y[None, :, :, None] * (4 + phase[..., 0]) + phase[..., 1]) + np.cos(
        x[None, :, :, None] * (5 + phase[..., 2])
    )
    return ((wave + 2) * 63.75).astype(np.float32)
