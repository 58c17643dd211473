"""Weights in memory that can be given other values while programs that were compiled go on with them."""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from tfopt.errors import InputError


def variables(values: Mapping[str, np.ndarray]) -> dict[str, tf.Variable]:
    """Values by path as weights that can be swapped."""
    return {path: tf.Variable(value, trainable=False) for path, value in values.items()}


def swap(weights: Mapping[str, tf.Variable], others: Mapping[str, np.ndarray]) -> None:
    """Gives some of the weights other values.

    Raises:
        InputError: a weight that is not there, or of another shape; none has changed then.
    """
    for path, value in others.items():
        if path not in weights or tuple(weights[path].shape) != value.shape:
            raise InputError(f"there is no weight {path!r} of the shape {value.shape} to swap")
    for path, value in others.items():
        weights[path].assign(value)
