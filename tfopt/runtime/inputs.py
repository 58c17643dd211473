"""What is given to an artifact, checked before it runs: a runtime may cut, wrap or clamp it and answer plausibly.

A check takes microseconds: it is always on.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfopt._base.arrays import as_numbers
from tfopt.errors import InputError


def checked(name: str, value: Any, *, dtype: np.dtype, limit: int | None) -> np.ndarray:
    """An input as an array of the type that the artifact takes.

    Args:
        name: of the input.
        value: an array, or what makes one.
        dtype: that the artifact takes.
        limit: rows of the table in which its ids are looked up, where that is known.

    Raises:
        InputError: no array of numbers, nothing in it, fractions or numbers beyond the range where integers are
            taken, numbers beyond it where floats are, or an id beyond its table.
    """
    if dtype.kind in "OSU":  # texts
        return np.asarray(value).astype(dtype)
    array = as_numbers(value, f"input {name!r}")
    if not array.size:
        raise InputError(f"input {name!r} is empty, its shape is {array.shape}")
    if dtype.kind in "iu":
        _check_integers(name, array, dtype=dtype, limit=limit)
    elif array.dtype.itemsize > dtype.itemsize and array.dtype.kind == "f":
        _check_range(name, array, dtype)
    return array if array.dtype == dtype else array.astype(dtype)


def check_masks(named: Mapping[str, np.ndarray], masks: Mapping[str, Sequence[str]]) -> None:
    """Checks that masks are of 0 and 1, fit what they mask, and leave a token in every row.

    Raises:
        InputError: one is not, does not, or leaves none.
    """
    for name, covered in masks.items():
        mask = named.get(name)
        if mask is None or mask.ndim != 2:
            continue
        if mask.min() < 0 or mask.max() > 1:
            raise InputError(f"{name} must hold 0 and 1, got {mask.min()} to {mask.max()}")
        for other in (n for n in covered if n in named):
            if named[other].shape[:2] != mask.shape:
                raise InputError(f"{name} must have the shape of {other} {named[other].shape}, got {mask.shape}")
        if not mask.any(1).all():
            raise InputError(f"{name} has no token in row {int(np.flatnonzero(~mask.any(1))[0])}")


def _check_integers(name: str, array: np.ndarray, *, dtype: np.dtype, limit: int | None) -> None:
    if array.dtype.kind == "f":
        whole = np.isfinite(array) & (array == np.rint(array))
        if not whole.all():
            raise InputError(f"input {name!r} takes whole numbers, got {array[~whole][0]}: it would be cut")
    low, high = array.min(), array.max()
    info = np.iinfo(dtype)
    are_ids = limit is not None or name.endswith("ids")  # below zero, some runtimes count from the end of a table
    least, most = 0 if are_ids else info.min, info.max if limit is None else limit - 1
    if low < least or high > most:
        kind = "ids" if are_ids else "numbers"
        raise InputError(f"input {name!r} takes {kind} from {least} to {most}, got {low if low < least else high}")


def _check_range(name: str, array: np.ndarray, dtype: np.dtype) -> None:
    largest, most = np.abs(array).max(), float(np.finfo(dtype).max) if dtype.kind == "f" else np.inf
    if np.isfinite(largest) and largest > most:
        raise InputError(f"input {name!r} takes {dtype.name} of at most {most:.4g}, got {largest:.4g}")
