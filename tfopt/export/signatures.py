"""What an export needs to know about shapes: the lengths it writes and the samples it checks with."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tfopt._keras.keras_io import Inputs, takes_length
from tfopt.errors import InputError

DEFAULT_LENGTHS = (32, 64, 128)
MASK = "attention_mask"


def check_lengths(model: Any, inputs: Inputs, lengths: Sequence[int] | None) -> tuple[int, ...]:
    """The lengths to export: those given, a default for models with a mask, none without an axis for it.

    Raises:
        InputError: lengths for a model without such an axis, none for one that cannot be padded, or one
            that the model does not take.
    """
    if not inputs.has_length:
        if lengths:
            raise InputError(f"the model has no unknown axis, so lengths={list(lengths)} mean nothing")
        return ()
    if lengths is None:
        if MASK not in inputs.specs:
            raise InputError(
                "the model takes sequences of any length but no 'attention_mask', so shorter ones cannot be "
                "padded: pass lengths=[...] with every length that you need"
            )
        usable = tuple(n for n in DEFAULT_LENGTHS if takes_length(model, inputs, n))
        if not usable:
            raise InputError(f"the model takes none of the lengths {DEFAULT_LENGTHS}: pass lengths=[...]")
        return usable
    chosen = tuple(sorted({int(n) for n in lengths}))
    if not chosen or chosen[0] < 1:
        raise InputError(f"lengths must be positive, got {list(lengths)}")
    for length in chosen:
        if not takes_length(model, inputs, length):
            raise InputError(f"the model does not take sequences of length {length}")
    return chosen


def pad_to(value: np.ndarray, spec: Any, length: int | None) -> np.ndarray:
    """Rows cut and padded with zeros along axes of unknown size to `length`."""
    if length is None:
        return value
    for axis, size in enumerate(tuple(spec.shape)[1:], 1):
        if size is None:
            value = np.take(value, range(min(length, value.shape[axis])), axis)
            value = np.pad(value, [(0, length - n if i == axis else 0) for i, n in enumerate(value.shape)])
    return value
