"""Matrices that mix channels evenly and are undone by their transpose."""

import numpy as np

_LARGEST = 128  # matrix of Hadamard; beyond, a product of two small ones costs less


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
    """An orthogonal matrix of any size, the Kronecker product of its `factors`.

    >>> bool(np.allclose(mixing(12) @ mixing(12).T, np.eye(12)))
    True
    """
    return np.kron(*factors(size))


def factors(size: int) -> tuple[np.ndarray, np.ndarray]:
    """An orthogonal matrix and one of Hadamard, (m, m) and (n, n) with m * n = size.

    A row of `size` numbers, as (m, n), times their Kronecker product is the transpose of the first, times the row,
    times the second.
    """
    block = min(_LARGEST, power_of_two_in(size))
    rest = size // block
    power = power_of_two_in(rest)
    odd = rest // power
    places = np.arange(odd)
    cosines = np.cos(np.pi * (2 * places[None] + 1) * places[:, None] / (2 * odd)) * np.sqrt(2 / odd)
    cosines[0] = odd**-0.5
    return np.kron(cosines, hadamard(power)), hadamard(block)


def power_of_two_in(size: int) -> int:
    """The largest power of two that divides a number."""
    return size & -size
