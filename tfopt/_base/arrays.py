"""Arrays of numbers out of what a caller gives."""

from typing import Any

import numpy as np

from tfopt.errors import InputError


def as_numbers(value: Any, what: str) -> np.ndarray:
    """An array of booleans, integers or floats.

    Raises:
        InputError: rows of several lengths, or something else than numbers; `what` says of what.
    """
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InputError(f"{what} must be an array whose rows have one length: {error}") from error
    if array.dtype.kind not in "biuf":
        raise InputError(f"{what} must hold numbers, got {array.dtype}")
    return array
