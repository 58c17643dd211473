"""Reads packed TFRecord as batches of similar length, padded to the bucket they fall into.

Records are parsed and grouped a window at a time instead of one by one: the tf.data operators then run
once per window of thousands of records, which is what makes reading fast.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt.data.pack import SPLIT, Manifest, check_shards, read_manifest
from tfopt.errors import DataError, InputError

DEFAULT_BUCKETS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_WINDOW_BATCHES = 64


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
    split: str = SPLIT,
) -> tf.data.Dataset:
    """Batches of ``({"input_ids", "attention_mask"}, label)``, or of the inputs alone if unlabelled.

    All three are int32; the inputs have shape (batch, bucket), where the bucket is the smallest that
    holds the longest record of the batch. Each pass visits every record once; the last batch of a
    window may be smaller.

    Args:
        folder: packed by `tfopt.data.pack`; its shards are compared with the manifest first.
        batch_size: records per batch.
        buckets: padding lengths in ascending order; by default `buckets_up_to` the longest record.
        shuffle: new order of shards, records and batches in every pass, the same for the same seed.
        seed: of the shuffle.
        by_length: group records of similar length; else batches keep the file order.
        split: name of the split to read.

    Raises:
        DataError: a shard disagrees with the manifest.
        InputError: a bad batch size, or buckets that do not hold the longest record.
    """
    manifest = read_manifest(folder, split)
    check_shards(folder, manifest)
    if batch_size < 1:
        raise InputError(f"batch_size must be 1 or more, got {batch_size}")
    limits = list(buckets) if buckets else buckets_up_to(manifest.max_length)
    if limits != sorted(limits) or limits[-1] < manifest.max_length:
        raise InputError(
            f"buckets must ascend and end at {manifest.max_length} (the longest record) or more, got {limits}"
        )
    labelled = bool(manifest.labels)
    records = _serialized(folder, manifest, shuffle, seed=seed)
    window = batch_size * _WINDOW_BATCHES
    if shuffle:
        records = records.shuffle(min(manifest.records, 4 * window), seed=seed)
    parsed = records.batch(window).map(lambda s: _parse(s, labelled), num_parallel_calls=2, deterministic=True)
    limits_tensor = tf.constant(limits, tf.int64)
    if shuffle:
        randoms = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)
    else:
        randoms = tf.data.Dataset.from_tensors(tf.int64.min).repeat()

    def cut(features: dict[str, tf.Tensor], random: tf.Tensor) -> tf.data.Dataset:
        return _cut_window(features, random, batch_size, limits=limits_tensor, shuffle=shuffle, by_length=by_length)

    dataset = tf.data.Dataset.zip((parsed, randoms)).flat_map(cut)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(_count(manifest.records, window, batch_size)))
    return dataset.prefetch(4)


def record_lengths(folder: str | Path, manifest: Manifest) -> np.ndarray:
    """Tokens of each record, in file order.

    Raises:
        DataError: a record is none of ours.
    """
    parsed = _serialized(folder, manifest, False, seed=0).batch(8192).map(lambda s: _parse(s, False))
    try:
        return np.concatenate([f["input_ids"].row_lengths().numpy() for f in parsed])
    except tf.errors.OpError as error:
        raise DataError(f"{folder} holds records without token ids: {error.message.splitlines()[0]}") from error


def samples(folder: str | Path, count: int, *, split: str = SPLIT, balanced: bool = False) -> dict[str, np.ndarray]:
    """Records padded to one length, for checks and calibration.

    Args:
        folder: a packed folder.
        count: how many records; fewer if the split has fewer.
        split: of the folder.
        balanced: the same number of each class, as far as the split has them, instead of the first records.

    Returns:
        "input_ids" and "attention_mask" of shape (count, length), int32, and "label" if there is one.

    Raises:
        DataError: the split holds no records.
        InputError: `balanced` for records without labels.
    """
    manifest = read_manifest(folder, split)
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


def _count(records: int, window: int, batch_size: int) -> int:
    whole, rest = divmod(records, window)
    return whole * _WINDOW_BATCHES + -(-rest // batch_size)


def _serialized(folder: str | Path, manifest: Manifest, shuffle: bool, seed: int) -> tf.data.Dataset:
    paths = [str(Path(folder) / shard.file) for shard in manifest.shards]
    files = tf.data.Dataset.from_tensor_slices(paths)
    if shuffle:
        files = files.shuffle(len(paths), seed=seed)
    return files.interleave(
        lambda path: tf.data.TFRecordDataset(path),
        cycle_length=min(4, len(paths)), block_length=64, num_parallel_calls=min(2, len(paths)), deterministic=True,
    )  # fmt: skip


def _parse(serialized: tf.Tensor, labelled: bool) -> dict[str, tf.Tensor]:
    spec: dict[str, Any] = {"input_ids": tf.io.RaggedFeature(tf.int64, row_splits_dtype=tf.int64)}
    if labelled:
        spec["label"] = tf.io.FixedLenFeature((), tf.int64)
    found = tf.io.parse_example(serialized, spec)
    # A feature that is missing is parsed as an empty list.
    least = tf.reduce_min(found["input_ids"].row_lengths())
    with tf.control_dependencies([tf.debugging.assert_positive(least, "a record has no token ids")]):
        splits = tf.identity(found["input_ids"].row_splits)
    return {
        **found,
        "input_ids": tf.RaggedTensor.from_row_splits(found["input_ids"].values, splits, validate=False),
    }


def _cut_window(
    features: dict[str, tf.Tensor],
    random: tf.Tensor,
    batch_size: int,
    limits: tf.Tensor,
    shuffle: bool,
    by_length: bool,
) -> tf.data.Dataset:
    """Batches of one window of parsed records."""
    ids = features["input_ids"]
    lengths = ids.row_lengths()
    order = tf.argsort(lengths, stable=True) if by_length else tf.range(tf.size(lengths))
    starts = tf.range(0, tf.size(lengths), batch_size)
    if shuffle:
        starts = tf.random.experimental.stateless_shuffle(starts, tf.stack([random, tf.constant(1, tf.int64)]))

    def batch(start: tf.Tensor) -> Any:
        rows = order[start : start + batch_size]
        chosen = tf.gather(ids, rows)
        sizes = tf.gather(lengths, rows)
        width = limits[tf.searchsorted(limits, tf.reduce_max(sizes)[None])[0]]
        inputs = {
            "input_ids": tf.cast(chosen.to_tensor(shape=tf.stack([tf.constant(-1, tf.int64), width])), tf.int32),
            "attention_mask": tf.sequence_mask(sizes, width, tf.int32),
        }
        if "label" not in features:
            return inputs
        return inputs, tf.cast(tf.gather(features["label"], rows), tf.int32)

    return tf.data.Dataset.from_tensor_slices(starts).map(batch, num_parallel_calls=2, deterministic=True)
