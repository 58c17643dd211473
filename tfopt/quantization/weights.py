"""Puts a model's weights on their grids."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt._keras import keras_api
from tfopt.numerics.fake_quant import best_clip, scale_and_zero, to_integers
from tfopt.numerics.grids import Layout
from tfopt.quantization.config import QuantizeConfig
from tfopt.quantization.kinds import layouts
from tfopt.quantization.plan import PlannedWeight, plan_weights
from tfopt.quantization.record import Grid, as_matrix, from_matrix, grid_of

_LOOKED_AT = 16
# Mean squared error of weights that were rounded before, as a share of their own: what scales and offsets lose when
# they are stored is a tenth of it, and rounding others to 4 bits ten times as much.
_ROUNDED_BEFORE = 5e-4


def round_to_nearest(planned: PlannedWeight, value: np.ndarray, search_clip: bool) -> Grid:
    """The grid of a weight as it is.

    Args:
        planned: the weight.
        value: its values.
        search_clip: clip each group where that lowers the squared error, instead of reaching its largest value.
    """
    w = tf.constant(value, tf.float32)
    clip: Any = best_clip(w, planned.layout, planned.spec) if search_clip else 1.0
    scale, zero = scale_and_zero(w, planned.layout, planned.spec, clip=clip)
    return make_grid(planned, w, scale, zero=zero)


def came_in_blocks(model: Any, config: QuantizeConfig) -> bool:
    """Whether the matrices of a model lie in blocks with offsets already, as far as a few rows of some tell."""
    planned = [p for p in plan_weights(model, config).weights if p.spec.has_offsets]
    rows = Layout((1,))
    for one in planned[:: max(1, len(planned) // _LOOKED_AT)]:
        matrix = as_matrix(keras_api.to_numpy(one.weight.variable).astype(np.float32), one.layout)[:_LOOKED_AT]
        w = tf.constant(matrix)
        scale, zero = scale_and_zero(w, rows, one.spec, clip=best_clip(w, rows, one.spec))
        grid = grid_of(one.path, one.spec, matrix, scale=np.squeeze(scale, -1), zero=np.squeeze(zero, -1))
        if np.square(grid.values - matrix).mean() > _ROUNDED_BEFORE * np.square(matrix).mean():
            return False
    return bool(planned)


def make_grid(planned: PlannedWeight, w: tf.Tensor, scale: tf.Tensor, zero: tf.Tensor) -> Grid:
    """The grid of a weight whose scales are given in the shape of `scale_and_zero`."""
    integers = to_integers(w, planned.layout, planned.spec, scale=scale, zero=zero).numpy()
    source = as_matrix(np.asarray(w), planned.layout)
    scales, zeros = (_scale_matrix(np.asarray(a), planned, source.shape) for a in (scale, zero))
    matrix = as_matrix(integers, planned.layout).astype(np.int8)
    return Grid(planned.path, planned.spec, matrix, scale=scales, zero=zeros, source=source, note=planned.note)


def _scale_matrix(scale: np.ndarray, planned: PlannedWeight, shape: tuple[int, ...]) -> np.ndarray:
    """Scales as (outputs or 1, blocks or 1)."""
    if planned.spec.granularity == "tensor":
        return scale.reshape(1, 1)
    if planned.spec.granularity == "channel":
        return scale.reshape(shape[0], 1)
    first = planned.layout.inputs[0]  # (..., blocks, 1, ...): outputs before and after the input axes
    blocks = np.moveaxis(np.squeeze(scale, first + 1), first, -1)
    return np.ascontiguousarray(blocks).reshape(shape[0], -1)


def assign(planned: PlannedWeight, grid: Grid) -> None:
    """Writes the grid's values into the model."""
    variable = planned.weight.variable
    shape = tuple(int(d) for d in variable.shape)
    variable.assign(from_matrix(grid.values, shape, planned.layout).astype(keras_api.to_numpy(variable).dtype))


@contextlib.contextmanager
def on_grids(model: Any, grids: Mapping[str, Grid]) -> Iterator[None]:
    """While entered, the weights whose paths have a grid hold its values."""
    before = []
    try:
        for weight in keras_api.weights(model):
            if weight.path in grids:
                value = keras_api.to_numpy(weight.variable)
                before.append((weight.variable, value))
                rounded = from_matrix(grids[weight.path].values, value.shape, layouts(weight.layer)[weight.name])
                weight.variable.assign(rounded.astype(value.dtype))
        yield
    finally:
        for variable, value in before:
            variable.assign(value)
