"""Few distinct values for many numbers: k-means on a line."""

import numpy as np
from jaxtyping import Float, Int

_ROUNDS = 30


def kmeans(values: Float[np.ndarray, "..."], clusters: int) -> Float[np.ndarray, " centers"]:
    """Centers of at most `clusters` groups of numbers, in rising order (Lloyd's algorithm, started evenly spaced).

    Args:
        values: numbers of any shape, finite.
        clusters: 1 or more.
    """
    flat = np.sort(values, axis=None).astype(np.float64)
    centers = np.linspace(flat[0], flat[-1], clusters)  # as in Han et al., https://arxiv.org/abs/1510.00149
    sums = np.concatenate([[0.0], np.cumsum(flat)])
    for _ in range(_ROUNDS):
        borders = np.searchsorted(flat, (centers[1:] + centers[:-1]) / 2)
        edges = np.concatenate([[0], borders, [flat.size]])
        counts = np.diff(edges)
        means = np.diff(sums[edges]) / np.maximum(counts, 1)
        moved = np.where(counts > 0, means, centers)
        if np.array_equal(moved, centers):
            break
        centers = moved
    return np.unique(centers.astype(np.float32))


def nearest(
    values: Float[np.ndarray, "*shape"], centers: Float[np.ndarray, " centers"]
) -> Int[np.ndarray, "*shape"]:
    """Index of the nearest center of every number; `centers` must be in rising order."""
    return np.searchsorted((centers[1:] + centers[:-1]) / 2, values).astype(np.int32)
