"""Batches of records that hold several sequences each, with what tells them apart."""

from pathlib import Path
from typing import Any

import tensorflow as tf

from tfopt.data.records.manifest import SPLIT, read_manifest
from tfopt.data.records.read import Order, Source, read_batches
from tfopt.errors import DataError, InputError

_IDS, _LENGTHS = "input_ids", "segment_lengths"


def sequence_batches(
    folder: str | Path,
    batch_size: int,
    *,
    length: int | None = None,
    shuffle: bool = False,
    seed: int = 0,
    split: str = SPLIT,
    epoch: int | None = None,
    skip: int = 0,
    worker: tuple[int, int] = (0, 1),
) -> tf.data.Dataset:
    """Batches of ``{"input_ids", "segment_ids", "positions"}``, all int32 of shape (batch, length).

    As T5 packs them (https://arxiv.org/abs/1910.10683): tokens of one sequence have the same number, from 1 on, and
    positions that begin at 0; padding is 0 in all three. Tokens attend to those of their own sequence.

    Args:
        folder: packed with the layout "sequences".
        batch_size: records per batch.
        length: tokens of a row; by default those that a record could have.
        shuffle, seed, split, epoch, skip, worker: as for `data.batches.batches`.

    Raises:
        DataError: the records hold no sequences, or a shard disagrees with the manifest.
        InputError: a bad batch size.
    """
    manifest = read_manifest(folder, split)
    if _LENGTHS not in manifest.schema_fields:
        raise DataError(f"split {split!r} of {folder} was not packed with the layout 'sequences'")
    width = length or manifest.length_limit or manifest.max_length
    if width < max(manifest.max_length, 1):
        raise InputError(f"length must hold the longest record, of {manifest.max_length} tokens, got {width}")

    def cut(features: dict[str, Any], rows: tf.Tensor) -> dict[str, tf.Tensor]:
        ids, lengths = tf.gather(features[_IDS], rows), tf.gather(features[_LENGTHS], rows)
        sums = tf.debugging.assert_equal(
            tf.reduce_sum(lengths, axis=1), ids.row_lengths(), "the sequences of a record are longer than it"
        )
        with tf.control_dependencies([sums]):
            numbers = tf.ragged.range(lengths.row_lengths()) + 1
        of_tokens = ids.with_flat_values(tf.repeat(numbers.flat_values, lengths.flat_values))
        positions = ids.with_flat_values(tf.ragged.range(lengths.flat_values).flat_values)
        shape = [None, width]
        found = {_IDS: ids, "segment_ids": of_tokens, "positions": positions}
        return {name: tf.cast(value.to_tensor(shape=shape), tf.int32) for name, value in found.items()}

    order = Order(shuffle, seed, epoch, skip=skip, worker=worker)
    return read_batches(Source.open(folder, manifest, order.on_damage), batch_size, order, cut=cut)
