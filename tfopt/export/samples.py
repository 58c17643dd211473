"""What a file is compared with its model on: given data, or values drawn at random from what each input takes."""

from typing import Any

import numpy as np

from tfopt._keras.input_facts import InputFacts, draw
from tfopt._keras.keras_io import Inputs, check_samples
from tfopt._keras.sizes import Size, filled

_ROWS = 16
LENGTH = 8  # of random inputs, where any is taken


def make_samples(
    inputs: Inputs, facts: InputFacts, given: dict[str, np.ndarray] | None, longest: Size, padded: bool
) -> dict[str, Any]:
    """The samples to compare with, no longer than what is exported."""
    if given is not None:
        samples = check_samples(inputs, given)
        if not padded:  # what is padding in them is text to a file that takes no mask, and so to the model
            samples |= {name: np.ones_like(samples[name]) for name in facts.masks}
        return {name: cut(value, inputs.specs[name], longest) for name, value in samples.items()}
    return draw(inputs, facts, _ROWS, size=longest, padded=padded)


def cut(value: np.ndarray, spec: Any, size: Size | None) -> np.ndarray:
    """Values cut along open axes to a size; what is shorter stays."""
    if size is None:
        return value
    shape = tuple(spec.shape)[1:]
    for axis, (have, most) in enumerate(zip(shape, filled(spec.name, shape, size), strict=True), 1):
        if have is None:
            value = np.take(value, range(min(most or 0, value.shape[axis])), axis)
    return value
