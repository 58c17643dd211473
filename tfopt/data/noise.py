"""Noise on the tokens of training texts, another in every pass and the same whenever a pass is made again."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf


def noisy(
    batches: tf.data.Dataset,
    *,
    rate: float,
    others: Sequence[int],
    kept: Sequence[int],
    seed: int,
    epoch: int | tf.Variable,
    first: int = 0,
    ids: str = "input_ids",
    mask: str = "attention_mask",
) -> tf.data.Dataset:
    """Batches in which some tokens are others (word dropout, Iyyer et al., https://aclanthology.org/P15-1162).

    Args:
        batches: of (inputs, ...), inputs with ids and maybe a mask of shape (batch, length).
        rate: share of the tokens, in (0, 1).
        others: ids of which one takes the place of each.
        kept: ids that stay, as those that begin and end a text.
        seed: of the noise, together with the number of the pass and that of the batch.
        epoch: the number of the pass, or a variable that holds it.
        first: number of the first batch, in a pass that goes on.
        ids, mask: names of inputs; where the mask is 0, and there is one, ids stay.
    """

    def one(number: tf.Tensor, batch: tuple[Any, ...]) -> tuple[Any, ...]:
        inputs, *rest = batch
        found = inputs[ids]
        pass_seed = tf.stack([tf.constant(seed, tf.int64), tf.cast(tf.convert_to_tensor(epoch), tf.int64)])
        draw = tf.random.experimental.stateless_fold_in(pass_seed, number + first)
        fixed = tf.reduce_any(found[..., None] == tf.constant([*kept, -1], found.dtype), -1)
        chosen = ~fixed & (tf.random.stateless_uniform(tf.shape(found), draw) < rate)
        if mask in inputs:
            chosen &= inputs[mask] > 0
        which = tf.random.stateless_uniform(tf.shape(found), draw + 1, maxval=len(others), dtype=tf.int32)
        other = tf.gather(tf.constant(others, found.dtype), which)
        return {**inputs, ids: tf.where(chosen, other, found)}, *rest

    return batches.enumerate().map(lambda number, batch: one(number, batch))
