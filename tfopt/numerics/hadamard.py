"""Matrices that mix channels evenly and are undone by their transpose."""

import numpy as np


def hadamard(size: int) -> np.ndarray:
    """Sylvester's matrix of plus and minus ones, scaled so that it is its own inverse: (size, size) float64.

    Args:
        size: a power of two.

    >>> (hadamard(2) * 2**0.5).round().astype(int).tolist()
    [[1, 1], [1, -1]]
    """
    found = np.ones((1, 1))
    while len(found) < size:
        found = np.block([[found, found], [found, -found]])
    return found / np.sqrt(size)


def mixing(size: int) -> np.ndarray:
    """An orthogonal matrix of any size: that of Hadamard, times that of a cosine transform for an odd factor.

    >>> bool(np.allclose(mixing(12) @ mixing(12).T, np.eye(12)))
    True
    """
    power = power_of_two_in(size)
    odd = size // power
    places = np.arange(odd)
    cosines = np.cos(np.pi * (2 * places[None] + 1) * places[:, None] / (2 * odd)) * np.sqrt(2 / odd)
    cosines[0] = odd**-0.5
    return np.kron(cosines, hadamard(power))


def power_of_two_in(size: int) -> int:
    """The largest power of two that divides a number."""
    return size & -size
