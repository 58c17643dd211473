"""What could be done to a model, one place at a time, and what each such option saves."""

import dataclasses
from typing import Any

import numpy as np

from tfopt._keras import keras_api
from tfopt.compress.base import Option
from tfopt.compress.techniques import TECHNIQUES

FEW_BITS, MANY_BITS = 4, 8


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A weight that costs something.

    Attributes:
        path: of the weight.
        size: elements.
        multiplies: whether it is multiplied by for every token, rather than looked up in.
    """

    path: str
    size: int
    multiplies: bool


def matrices_of(model: Any) -> dict[str, Matrix]:
    """Every weight with two axes or more."""
    return {
        w.path: Matrix(w.path, int(np.prod(w.variable.shape)), w.name != "embeddings")
        for w in keras_api.weights(model)
        if len(w.variable.shape) > 1
    }


def options_of(model: Any) -> list[Option]:
    """All options of all techniques, each place's own from the mildest to the strongest."""
    return [option for technique in TECHNIQUES for option in technique.load().options(model)]
