"""Rounding that looks at what a layer is fed: GPTQ.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
https://arxiv.org/abs/2210.17323. Columns are rounded one after another, and what one loses is taken up by
those still to come, as far as the inputs of the layer let them.
"""

import dataclasses

import numpy as np

from tfopt.quantization.record import Grid

_DAMPING = 0.01  # share of the mean diagonal added to the Hessian, as in the paper
_LAZY = 128  # columns whose corrections are applied to the rest together


@dataclasses.dataclass(frozen=True)
class Rounded:
    """A layer rounded by GPTQ.

    Attributes:
        grid: the better of both roundings.
        error: mean squared output error on the calibration inputs, relative to the output itself.
        error_nearest: the same for rounding to nearest on the same grid.
    """

    grid: Grid
    error: float
    error_nearest: float

    @property
    def improved(self) -> bool:
        """Whether GPTQ beat rounding to nearest."""
        return self.error < self.error_nearest


def gptq(nearest: Grid, hessian: np.ndarray) -> Rounded:
    """Rounds a matrix anew on the scales of a grid.

    Args:
        nearest: the matrix rounded to nearest.
        hessian: sum of outer products of the layer's inputs, (inputs, inputs).

    Returns:
        The new grid, or the given one where that is better on these inputs.
    """
    hessian = hessian.astype(np.float64)
    norm = max(_output_error(nearest.source, hessian), 1e-30)
    error_nearest = _output_error(nearest.source - nearest.values, hessian) / norm
    candidate = dataclasses.replace(nearest, integers=_round_columns(nearest, hessian))
    error = _output_error(nearest.source - candidate.values, hessian) / norm
    return Rounded(candidate if error < error_nearest else nearest, error, error_nearest)


def _output_error(difference: np.ndarray, hessian: np.ndarray) -> float:
    d = difference.astype(np.float64)
    return float(np.einsum("oi,oi->", d @ hessian, d))


def _round_columns(grid: Grid, hessian: np.ndarray) -> np.ndarray:
    rest = grid.source.astype(np.float64).copy()
    columns = rest.shape[1]
    width = columns // grid.scale.shape[1]
    dead = np.diag(hessian) == 0
    damped = hessian + np.diag(np.where(dead, 1.0, 0.0) + _DAMPING * max(np.diag(hessian).mean(), 1e-12))
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    integers = np.empty(rest.shape, np.int8)
    for start in range(0, columns, _LAZY):
        stop = min(start + _LAZY, columns)
        errors = np.empty((rest.shape[0], stop - start))
        for i in range(start, stop):
            scale, zero = grid.scale[:, i // width], grid.zero[:, i // width]
            column = np.clip(np.rint(rest[:, i] / scale + zero), grid.spec.smallest, grid.spec.largest)
            integers[:, i] = column
            errors[:, i - start] = (rest[:, i] - (column - zero) * scale) / upper[i, i]
            rest[:, i + 1 : stop] -= np.outer(errors[:, i - start], upper[i, i + 1 : stop])
        rest[:, stop:] -= errors @ upper[start:stop, stop:]
    return integers
