"""Bounds gradients: by value, by the norm of each, or by the norm of all together."""

from collections.abc import Sequence

import tensorflow as tf

from tfopt.schedules import Clipping


def clipped(gradients: Sequence[tf.Tensor], kind: Clipping, bound: float) -> tuple[list[tf.Tensor], tf.Tensor]:
    """Bounded gradients, and the norms that they had.

    Args:
        gradients: of float type and any shapes.
        kind: "global_norm" scales all of them alike (Pascanu et al., https://arxiv.org/abs/1211.5063), "norm" each
            by its own norm, "value" cuts single values.
        bound: the largest norm or magnitude; 0 for none.

    Returns:
        The gradients, and the norm of each before, float32 of shape (gradients,); not finite where a value is not.
    """
    if not gradients:
        return [], tf.zeros([0])
    norms = tf.sqrt(tf.stack([tf.reduce_sum(tf.square(tf.cast(g, tf.float32))) for g in gradients]))
    if not bound:
        return list(gradients), norms
    if kind == "value":
        return [tf.clip_by_value(g, -bound, bound) for g in gradients], norms
    if kind == "norm":
        scales = tf.unstack(bound / tf.maximum(norms, bound))
        return [g * tf.cast(scale, g.dtype) for g, scale in zip(gradients, scales, strict=True)], norms
    scale = bound / tf.maximum(tf.norm(norms), bound)
    return [g * tf.cast(scale, g.dtype) for g in gradients], norms
