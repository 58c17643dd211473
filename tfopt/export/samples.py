"""What a file is compared with its model on: given data, or values drawn at random."""

from typing import Any

import numpy as np

from tfopt._keras.keras_io import Inputs, check_samples
from tfopt.export.id_limits import id_limits
from tfopt.export.signatures import MASK

_ROWS = 8
LENGTH = 8  # of random inputs, where any is taken


def make_samples(model: Any, inputs: Inputs, given: dict[str, np.ndarray] | None, longest: int) -> dict[str, Any]:
    """The samples to compare with, no longer than what is exported."""
    if given is not None:
        samples = check_samples(inputs, given)
        if inputs.has_length and not any(
            None not in tuple(s.shape)[1:] and len(s.shape) > 1 for s in inputs.specs.values()
        ):
            samples = {name: value[:, :longest] for name, value in samples.items()}
        return samples
    rng = np.random.default_rng(0)
    shapes = inputs.with_sizes(_ROWS, longest)
    limits = id_limits(model, inputs, longest)
    samples = {}
    for name, spec in shapes.items():
        shape = tuple(spec.shape)
        if name == MASK:
            samples[name] = np.ones(shape)
        elif spec.dtype.is_integer:
            samples[name] = rng.integers(0, limits.get(name, 2), shape)
        else:
            samples[name] = rng.standard_normal(shape)
        samples[name] = samples[name].astype(spec.dtype.as_numpy_dtype)
    return samples
