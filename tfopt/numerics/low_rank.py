"""Matrices as products of two thin ones."""

import dataclasses

import numpy as np
from jaxtyping import Float

_DAMPING = 1e-4  # share of the mean diagonal added to second moments, so that they can be inverted


@dataclasses.dataclass(frozen=True)
class Decomposition:
    """The best approximations of a matrix by rank.

    Attributes:
        left, right: their first r columns and rows are the best of rank r.
        energy: the share of the squared norm that the first 1, 2, ... keep, ascending to 1.
    """

    left: Float[np.ndarray, "inputs k"]
    right: Float[np.ndarray, "k outputs"]
    energy: Float[np.ndarray, " k"]

    def of_rank(self, rank: int) -> tuple[Float[np.ndarray, "inputs {rank}"], Float[np.ndarray, "{rank} outputs"]]:
        """Both factors, float32; singular values are shared between them."""
        return self.left[:, :rank].astype(np.float32), self.right[:rank].astype(np.float32)

    def rank_of(self, energy: float) -> int:
        """The smallest rank that keeps so much."""
        return int(np.searchsorted(self.energy, energy - 1e-12)) + 1


def decompose(
    matrix: Float[np.ndarray, "inputs outputs"], moments: Float[np.ndarray, "inputs inputs"] | None = None
) -> Decomposition:
    """Singular value decomposition, weighted by what the matrix is multiplied with.

    With second moments the error of the product counts instead of that of the matrix (Wang et al., "SVD-LLM",
    https://arxiv.org/abs/2403.07378, with a symmetric root for the Cholesky factor).

    Args:
        matrix: to be split.
        moments: the sum of the outer products of what it is multiplied with, or None.
    """
    weighted, back = matrix.astype(np.float64), None
    if moments is not None:
        damped = moments + _DAMPING * np.trace(moments) / len(moments) * np.eye(len(moments))
        values, vectors = np.linalg.eigh(damped)
        roots = np.sqrt(np.maximum(values, np.finfo(np.float64).tiny))
        weighted = (vectors * roots) @ (vectors.T @ weighted)
        back = (vectors / roots) @ vectors.T
    left, sizes, right = np.linalg.svd(weighted, full_matrices=False)
    total = max(float((sizes**2).sum()), np.finfo(np.float64).tiny)
    shared = np.sqrt(sizes)
    left = left * shared
    return Decomposition(
        left if back is None else back @ left, right * shared[:, None], np.cumsum(sizes**2) / total
    )
