"""Rounding to integer grids in floating point, with gradients that pass through.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", https://arxiv.org/abs/1712.05877; straight-through gradients: Bengio et al.,
https://arxiv.org/abs/1308.3432; learned step size: Esser et al., https://arxiv.org/abs/1902.08153.
"""

import math
from typing import Any

import tensorflow as tf

from tfopt.numerics.grids import Granularity, Layout, WeightSpec

OFFSET_LEVELS = 127  # of the offsets of blocks, to either side
_CLIP_RATIOS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5)


@tf.custom_gradient
def straight_through(latent: tf.Tensor, value: tf.Tensor) -> Any:
    """`value`, exactly, with the gradient going to `latent`."""
    return tf.identity(value), lambda upstream: (upstream, None)


def grouped(w: tf.Tensor, layout: Layout, granularity: Granularity) -> tuple[tf.Tensor, tuple[int, ...]]:
    """The weight in a shape in which one scale covers the axes that are returned with it."""
    rank = len(w.shape)
    if granularity == "tensor":
        return w, tuple(range(rank))
    if granularity == "channel":
        return w, layout.inputs
    shape = [-1 if d is None else int(d) for d in w.shape]
    first, last = layout.inputs[0], layout.inputs[-1]
    width = math.prod(shape[first : last + 1])
    blocks = [*shape[:first], width // int(granularity), int(granularity), *shape[last + 1 :]]
    return tf.reshape(w, blocks), (first + 1,)


def scale_and_zero(
    w: tf.Tensor, layout: Layout, spec: WeightSpec, clip: tf.Tensor | float = 1.0
) -> tuple[tf.Tensor, tf.Tensor]:
    """Scale and zero point of every group, in the shape of `grouped` with 1 for the covered axes.

    Args:
        w: float weight.
        layout: its axes.
        spec: its grid.
        clip: share of the largest magnitude that the grid reaches, in (0, 1]; above 1, a grid with offsets begins
            at the lowest value and reaches beyond the highest.
    """
    values, axes = grouped(w, layout, spec.granularity)
    if spec.symmetric:
        reach = tf.reduce_max(tf.abs(values), axes, keepdims=True) * clip
        scale, zero = _usable_scale(reach / spec.largest, spec), tf.zeros_like(reach)
    elif spec.has_offsets:
        low, high = (reduce(values, axes, keepdims=True) for reduce in (tf.reduce_min, tf.reduce_max))
        scale = _usable_scale((high - low) * clip / (spec.largest - spec.smallest), spec)
        middle = (low + high) / 2 - scale * (spec.largest + spec.smallest) / 2
        offsets = tf.where(clip > 1.0, low - scale * spec.smallest, middle)
        zero = -_storable_offsets(offsets, axes[0] - 1) / scale
    else:
        low = tf.minimum(tf.reduce_min(values, axes, keepdims=True), 0.0) * clip
        high = tf.maximum(tf.reduce_max(values, axes, keepdims=True), 0.0) * clip
        scale = _usable_scale((high - low) / (spec.largest - spec.smallest), spec)
        zero = tf.clip_by_value(tf.round(spec.smallest - low / scale), float(spec.smallest), float(spec.largest))
    return scale, zero


def _storable_offsets(offsets: tf.Tensor, blocks: int) -> tf.Tensor:
    """What 8 bits hold of the offsets of blocks, with one scale for those of an output."""
    reach = tf.reduce_max(tf.abs(offsets), blocks, keepdims=True)
    step = tf.where(reach > 0, reach / OFFSET_LEVELS, tf.ones_like(reach))
    return tf.round(offsets / step) * step


def _usable_scale(scale: tf.Tensor, spec: WeightSpec) -> tf.Tensor:
    """Not zero where all weights are; and, for blocks, one that the file format can hold."""
    scale = tf.where(scale > 0, scale, tf.ones_like(scale))
    if isinstance(spec.granularity, int):  # stored as float16 that came from bfloat16
        scale = tf.cast(tf.cast(scale, tf.bfloat16), tf.float32)
    return scale


def to_integers(w: tf.Tensor, layout: Layout, spec: WeightSpec, scale: tf.Tensor, zero: tf.Tensor) -> tf.Tensor:
    """The integers (as floats, zero point included) of the weight, in its own shape."""
    values, _ = grouped(w, layout, spec.granularity)
    return tf.reshape(_nearest(values, spec, scale, zero=zero), w.shape)


def _nearest(values: tf.Tensor, spec: WeightSpec, scale: tf.Tensor, zero: tf.Tensor) -> tf.Tensor:
    found = tf.round(values / scale + zero) if spec.has_offsets else tf.round(values / scale) + zero
    return tf.clip_by_value(found, float(spec.smallest), float(spec.largest))


def fake_quant_weight(w: tf.Tensor, layout: Layout, spec: WeightSpec, clip: tf.Tensor | float = 1.0) -> tf.Tensor:
    """The weight rounded to the grid that it spans at this moment; the gradient passes straight through."""
    latent = tf.stop_gradient(w)
    values, _ = grouped(latent, layout, spec.granularity)
    scale, zero = scale_and_zero(latent, layout, spec, clip=clip)
    if spec.symmetric and isinstance(clip, float) and clip == 1.0 and spec.granularity in ("tensor", "channel"):
        rounded = tf.round(values / scale) * scale  # nothing reaches beyond the grid
    else:
        rounded = (_nearest(values, spec, scale, zero=zero) - zero) * scale
    return straight_through(w, tf.reshape(rounded, tf.shape(w)))


def best_clip(w: tf.Tensor, layout: Layout, spec: WeightSpec) -> tf.Tensor:
    """Of a few shares of the largest magnitude, the one with the least squared rounding error in each group."""
    values, axes = grouped(w, layout, spec.granularity)
    best: tf.Tensor | None = None
    chosen: tf.Tensor | None = None
    # Weights that came in blocks do not always span all of their levels.
    steps = spec.largest - spec.smallest
    wider = [steps / n for n in range(steps - 1, steps // 2, -1)] if spec.has_offsets else []
    for ratio in (*_CLIP_RATIOS, *wider):
        scale, zero = scale_and_zero(w, layout, spec, clip=ratio)
        rounded = _nearest(values, spec, scale, zero=zero)
        error = tf.reduce_sum(((rounded - zero) * scale - values) ** 2, axes, keepdims=True)
        if best is None:
            best, chosen = error, tf.ones_like(error) * ratio
        else:
            chosen = tf.where(error < best, ratio, chosen)
            best = tf.minimum(error, best)
    return chosen


def fake_quant_learned(w: tf.Tensor, step: tf.Tensor, layout: Layout, spec: WeightSpec) -> tf.Tensor:
    """The weight rounded to a symmetric grid whose step size is trained (LSQ).

    Args:
        w: float weight.
        step: trained step sizes above 0, in the shape that `scale_and_zero` gives.
        layout: its axes.
        spec: its grid; symmetric.
    """
    smallest, largest = float(spec.smallest), float(spec.largest)
    _, axes = grouped(w, layout, spec.granularity)

    @tf.custom_gradient
    def rounded(latent: tf.Tensor, step: tf.Tensor) -> Any:
        values, _ = grouped(latent, layout, spec.granularity)
        positive = _usable_scale(step, spec)
        ratio = values / positive
        integers = tf.clip_by_value(tf.round(ratio), smallest, largest)
        inside = tf.logical_and(ratio >= smallest, ratio <= largest)

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            up = tf.reshape(upstream, tf.shape(values))
            per_weight = up * tf.where(inside, integers - ratio, integers)
            count = tf.cast(tf.size(values) // tf.maximum(tf.size(step), 1), tf.float32)
            to_step = tf.reduce_sum(per_weight, axes, keepdims=True)
            to_latent = tf.where(inside, up, tf.zeros_like(up))
            return tf.reshape(to_latent, tf.shape(latent)), to_step * tf.math.rsqrt(count * largest)

        return tf.reshape(integers * positive, tf.shape(latent)), gradient

    return rounded(w, step)


def fake_quant_rows(x: tf.Tensor, axes: tuple[int, ...], bits: int = 8, symmetric: bool = False) -> tf.Tensor:
    """Activations rounded as a runtime does that looks for the range of each row while it runs.

    Args:
        x: float activations.
        axes: axes that share one range.
        bits: of the grid.
        symmetric: whether the range is symmetric around zero.
    """
    latent = tf.cast(tf.stop_gradient(x), tf.float32)
    if symmetric:
        largest = float(2 ** (bits - 1) - 1)
        scale = tf.reduce_max(tf.abs(latent), axes, keepdims=True) / largest
        scale = tf.where(scale > 0, scale, tf.ones_like(scale))
        value = tf.round(latent / scale) * scale
    else:
        low = tf.minimum(tf.reduce_min(latent, axes, keepdims=True), 0.0)
        high = tf.maximum(tf.reduce_max(latent, axes, keepdims=True), 0.0)
        scale = (high - low) / float(2**bits - 1)
        scale = tf.where(scale > 0, scale, tf.ones_like(scale))
        zero = tf.round(low / scale)
        value = tf.clip_by_value(tf.round(latent / scale), zero, zero + float(2**bits - 1)) * scale
    return straight_through(x, tf.cast(value, x.dtype))


def fake_quant_range(x: tf.Tensor, low: tf.Tensor, high: tf.Tensor, bits: int, symmetric: bool) -> tf.Tensor:
    """Activations rounded to one grid between `low` and `high`, clipped outside; zero is on the grid.

    Gradients reach `low` and `high` from what is clipped (Jain et al., https://arxiv.org/abs/1903.08066).
    """
    rounded = tf.quantization.fake_quant_with_min_max_vars(
        tf.cast(x, tf.float32), low, high, num_bits=bits, narrow_range=symmetric
    )
    return tf.cast(rounded, x.dtype)
