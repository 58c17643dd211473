"""What a file is compared with its model on: given data, or values drawn at random."""

from typing import Any

import numpy as np
import tensorflow as tf

from tfopt._keras import keras_api
from tfopt._keras.keras_io import Inputs, call, check_samples
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
    vocabulary = _usable_ids(model, inputs, shapes)
    samples = {}
    for name, spec in shapes.items():
        shape = tuple(spec.shape)
        if name == MASK:
            samples[name] = np.ones(shape)
        elif spec.dtype.is_integer:
            samples[name] = rng.integers(0, vocabulary, shape)
        else:
            samples[name] = rng.standard_normal(shape)
        samples[name] = samples[name].astype(spec.dtype.as_numpy_dtype)
    return samples


def _usable_ids(model: Any, inputs: Inputs, shapes: dict[str, tf.TensorSpec]) -> int:
    """The most ids that every integer input takes: the rows of the largest lookup table that none exceeds."""
    tables = [w.variable for w in keras_api.weights(model) if w.name == "embeddings"]
    for rows in sorted({int(t.shape[0]) for t in tables}, reverse=True):
        probe = {
            n: tf.ones(s.shape, s.dtype) * (1 if n == MASK or not s.dtype.is_integer else rows - 1)
            for n, s in shapes.items()
        }
        try:
            call(model, inputs, probe)
        except tf.errors.InvalidArgumentError:
            continue
        return rows
    return 2
