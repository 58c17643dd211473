"""Batches of packed token ids of similar length, padded to the bucket they fall into."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt.data.records.manifest import SPLIT, Manifest
from tfopt.data.records.mixture import open_split
from tfopt.data.records.read import Cut, Order, parse, read_batches
from tfopt.errors import DataError, InputError

DEFAULT_BUCKETS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_IDS, _LABEL = "input_ids", "label"


def buckets_up_to(longest: int) -> list[int]:
    """Padding lengths that cover records of up to `longest` tokens."""
    return [*(b for b in DEFAULT_BUCKETS if b < longest), longest]


def batches(
    folder: str | Path,
    batch_size: int,
    *,
    buckets: Sequence[int] | None = None,
    shuffle: bool = False,
    seed: int = 0,
    by_length: bool = True,
    split: str | Mapping[str, float] = SPLIT,
    epoch: int | tf.Variable | None = None,
    skip: int = 0,
    worker: tuple[int, int] = (0, 1),
    on_damage: str = "error",
) -> tf.data.Dataset:
    """Batches of ``({"input_ids", "attention_mask"}, label)``, or of the inputs alone if unlabelled.

    All three are int32; the inputs have shape (batch, bucket), where the bucket is the smallest that
    holds the longest record of the batch. Each pass visits every record once; the last batch of a
    pass may be smaller.

    Args:
        folder: packed by `tfopt.data.pack`; its shards are compared with the manifest first.
        batch_size: records per batch.
        buckets: padding lengths in ascending order; by default `buckets_up_to` the longest record.
        shuffle: new order of shards, records and batches in every pass, the same for the same seed.
        seed: of the shuffle.
        by_length: group records of similar length; else batches keep the file order.
        split: name of the split to read; or names of several with the weight of each, how often a record comes
            from it relative to the others: a pass has as many records as all of them.
        epoch: the number of the pass, whose order is then the same each time, or a variable that holds it; None
            for another pass each time.
        skip: batches of a pass that were had before: a training that was cut off goes on with the next one.
        worker: (its number from 0, how many workers there are); each reads records of its own.
        on_damage: "error", or "skip" to leave damaged records out; how many is logged as a warning.

    Raises:
        DataError: a shard disagrees with the manifest.
        InputError: a bad batch size, or buckets that do not hold the longest record.
    """
    records, manifest = open_split(folder, split, on_damage)
    limits = check_buckets(buckets, manifest.max_length)
    grouped = tuple(limits) if by_length else ()
    order = Order(shuffle, seed, epoch, skip=skip, worker=worker, on_damage=on_damage, buckets=grouped)
    return read_batches(records, batch_size, order, cut=token_cut(limits))


def check_buckets(buckets: Sequence[int] | None, longest: int) -> list[int]:
    """The padding lengths that were given, or those by default.

    Raises:
        InputError: they do not ascend, or do not hold the longest record.
    """
    if longest < 1:
        raise InputError(
            "the manifest does not tell the longest record: read these with data.columns.record_batches"
        )
    limits = list(buckets) if buckets else buckets_up_to(longest)
    if limits != sorted(limits) or limits[-1] < longest:
        raise InputError(f"buckets must ascend and end at {longest} (the longest record) or more, got {limits}")
    return limits


def token_cut(buckets: Sequence[int]) -> Cut:
    """How a batch of padded ids, with labels if there are any, is cut out of a window of records."""
    limits = tf.constant(list(buckets), tf.int64)

    def cut(features: dict[str, Any], rows: tf.Tensor) -> Any:
        inputs = padded(features[_IDS], rows, limits)
        if _LABEL not in features:
            return inputs
        return inputs, tf.cast(tf.gather(features[_LABEL], rows), tf.int32)

    return cut


def padded(ids: tf.RaggedTensor, rows: tf.Tensor, limits: tf.Tensor) -> dict[str, tf.Tensor]:
    """Token ids and mask of some rows, padded to the smallest of `limits` that holds them; int32."""
    # By hand on the flat values: operators on ragged tensors are made of ten times as many.
    starts = tf.gather(ids.row_splits, rows)
    sizes = tf.gather(ids.row_splits, rows + 1) - starts
    width = limits[tf.searchsorted(limits, tf.reduce_max(sizes)[None])[0]]
    columns = tf.range(width)[None]
    there = columns < sizes[:, None]
    found = tf.gather(ids.flat_values, tf.where(there, starts[:, None] + columns, 0))
    return {
        _IDS: tf.where(there, tf.cast(found, tf.int32), 0),
        "attention_mask": tf.cast(there, tf.int32),
    }


def record_lengths(folder: str | Path, manifest: Manifest) -> np.ndarray:
    """Tokens of each record, in file order.

    Raises:
        DataError: a record is none of ours.
    """
    fields = {_IDS: manifest.schema_fields[_IDS]}
    paths = [str(Path(folder) / shard.file) for shard in manifest.shards]
    records = tf.data.TFRecordDataset(paths, manifest.compression).batch(8192).map(lambda s: parse(s, fields))
    try:
        return np.concatenate([f[_IDS].row_lengths().numpy() for f in records])
    except tf.errors.OpError as error:
        raise DataError(f"{folder} holds records without token ids: {error.message.splitlines()[0]}") from error


def samples(
    folder: str | Path, count: int, *, split: str | Mapping[str, float] = SPLIT, balanced: bool = False
) -> dict[str, np.ndarray]:
    """Records padded to one length, for checks and calibration.

    Args:
        folder: a packed folder.
        count: how many records; fewer if the split has fewer.
        split: of the folder, or several with their weights, as for `batches`.
        balanced: the same number of each class, as far as the split has them, instead of the first records.

    Returns:
        "input_ids" and "attention_mask" of shape (count, length), int32, and "label" if there is one.

    Raises:
        DataError: the split holds no records.
        InputError: `balanced` for records without labels.
    """
    _, manifest = open_split(folder, split, "error")
    if balanced and not manifest.labels:
        raise InputError(f"{folder} holds no labels to balance; leave balanced=False")
    wanted = manifest.records if balanced else count
    found = list(itertools.islice(batches(folder, max(wanted, 1), by_length=False, split=split), 1))
    if not found:
        raise DataError(f"{folder} holds no records")
    if not manifest.labels:
        return {k: v.numpy() for k, v in found[0].items()}
    inputs, labels = found[0]
    everything = {**{k: v.numpy() for k, v in inputs.items()}, "label": labels.numpy()}
    if not balanced:
        return everything
    rows = _balanced_rows(everything["label"], count)
    longest = int(everything["attention_mask"][rows].sum(1).max())
    return {k: v[rows][:, :longest] if v.ndim > 1 else v[rows] for k, v in everything.items()}


def _balanced_rows(labels: np.ndarray, count: int) -> np.ndarray:
    """The first rows of each class in turn, until there are `count`."""
    places = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    turns = [row for turn in itertools.zip_longest(*places) for row in turn if row is not None]
    return np.array(turns[:count])
