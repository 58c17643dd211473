"""Records with the features that a task declares: written, checked and read as batches.

Examples of `tf.train.Example` with lists of integers; https://www.tensorflow.org/tutorials/load_data/tfrecord.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from tfopt._base.files import sha256, write_json
from tfopt.data.batches import buckets_up_to
from tfopt.data.pack import Manifest, Shard, check_shards, manifest_name, read_manifest
from tfopt.errors import DataError, InputError

IGNORED = -1  # a tag or class that does not count
_IDS, _MASK = "input_ids", "attention_mask"
_SHUFFLED = 10_000


@dataclasses.dataclass(frozen=True)
class Feature:
    """One feature of a record.

    Attributes:
        name: in the record.
        kind: "tokens" are ids, one list; "tags" one class or `IGNORED` for each token; "class" one class or
            `IGNORED`; "number" one number, 0 or more.
    """

    name: str
    kind: Literal["tokens", "tags", "class", "number"]

    @property
    def is_list(self) -> bool:
        return self.kind in ("tokens", "tags")

    @property
    def shift(self) -> int:
        """What is added before it is stored, so that `IGNORED` is 0."""
        return -IGNORED if self.kind in ("tags", "class") else 0


def write_features(
    folder: Path,
    split: str,
    *,
    features: Sequence[Feature],
    columns: Mapping[str, Sequence[Any]],
    shards: int,
    seed: int,
    facts: Mapping[str, Any],
) -> Manifest:
    """Writes one split into an existing folder: shuffled shards and a manifest.

    Args:
        folder: an existing folder.
        split: name of the split.
        features: what a record has.
        columns: name of a feature -> its values, one per record.
        shards: files to write; never more than there are records.
        seed: of the shuffle.
        facts: what the manifest says beyond that: texts, length_limit, on_long, too_long, longest, heads.

    Raises:
        DataError: no records, or columns of different lengths.
    """
    counts = {len(columns[feature.name]) for feature in features}
    if len(counts) != 1 or counts == {0}:
        raise DataError(f"split {split!r} has columns of {sorted(counts)} records")
    (count,) = counts
    order = np.random.default_rng(seed).permutation(count)
    parts = np.array_split(order, min(shards, count))
    files = [
        _write_shard(folder / f"{split}-{i:05d}-of-{len(parts):05d}.tfrecord", features, columns, rows=rows)
        for i, rows in enumerate(parts)
    ]
    lengths = [len(ids) for ids in columns[_IDS]]
    manifest = Manifest(
        **{"labels": [], "class_counts": [], **facts}, records=count, tokens=sum(lengths), max_length=max(lengths),
        shards=files, features={feature.name: feature.kind for feature in features},
    )  # fmt: skip
    write_json(folder / manifest_name(split), dataclasses.asdict(manifest))
    return manifest


def _write_shard(
    path: Path, features: Sequence[Feature], columns: Mapping[str, Sequence[Any]], rows: np.ndarray
) -> Shard:
    with tf.io.TFRecordWriter(str(path)) as writer:
        for row in rows.tolist():
            writer.write(_example(features, {feature.name: columns[feature.name][row] for feature in features}))
    return Shard(path.name, len(rows), path.stat().st_size, sha256=sha256(path))


def _example(features: Sequence[Feature], values: Mapping[str, Any]) -> bytes:
    entries = {}
    for feature in features:
        value = np.atleast_1d(np.asarray(values[feature.name], np.int64)) + feature.shift
        entries[feature.name] = tf.train.Feature(int64_list=tf.train.Int64List(value=value))
    content: bytes = tf.train.Example(features=tf.train.Features(feature=entries)).SerializeToString()
    return content


def feature_batches(
    folder: str | Path, batch_size: int, *, split: str, shuffle: bool = False, seed: int = 0
) -> tf.data.Dataset:
    """Batches of ``({"input_ids", "attention_mask"}, {feature: values})``, all int32.

    Lists have shape (batch, bucket) and are padded, tags with `IGNORED`; classes and numbers have shape (batch,).

    Args:
        folder: a folder with splits that `write_features` wrote.
        batch_size: records per batch.
        split: to read.
        shuffle: a new order in every pass.
        seed: of the order.

    Raises:
        DataError: a shard disagrees with the manifest.
        InputError: a bad batch size.
    """
    if batch_size < 1:
        raise InputError(f"batch_size must be 1 or more, got {batch_size}")
    manifest = read_manifest(folder, split)
    check_shards(folder, manifest)
    features = [Feature(name, kind) for name, kind in manifest.features.items()]  # type: ignore[arg-type]
    spec = {f.name: tf.io.RaggedFeature(tf.int64) if f.is_list else tf.io.FixedLenFeature((), tf.int64)
            for f in features}  # fmt: skip

    def parse(record: tf.Tensor) -> dict[str, tf.Tensor]:
        found = tf.io.parse_single_example(record, spec)
        sizes = [tf.size(found[f.name]) for f in features if f.is_list]
        # A list that is missing is parsed as an empty one.
        same = tf.debugging.Assert(tf.reduce_all(tf.stack(sizes) == sizes[0]) & (sizes[0] > 0), [
            "a record has no token ids, or lists of other lengths", *sizes
        ])  # fmt: skip
        with tf.control_dependencies([same]):
            return {f.name: tf.cast(found[f.name], tf.int32) - f.shift for f in features}

    def split_labels(batch: dict[str, tf.Tensor]) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        inputs = {_IDS: batch[_IDS], _MASK: batch[_MASK]}
        return inputs, {name: value for name, value in batch.items() if name not in inputs}

    records = tf.data.TFRecordDataset([str(Path(folder, shard.file)) for shard in manifest.shards])
    if shuffle:
        records = records.shuffle(min(manifest.records, _SHUFFLED), seed=seed)
    limits = buckets_up_to(manifest.max_length)
    parsed = records.map(parse).map(lambda r: {**r, _MASK: tf.ones_like(r[_IDS])})
    padding = {f.name: tf.constant(IGNORED if f.kind == "tags" else 0, tf.int32) for f in features}
    batched = parsed.bucket_by_sequence_length(
        lambda record: tf.shape(record[_IDS])[0],
        bucket_boundaries=[limit + 1 for limit in limits[:-1]],
        bucket_batch_sizes=[batch_size] * len(limits),
        padding_values={**padding, _MASK: tf.constant(0, tf.int32)},
    )
    return batched.map(split_labels).prefetch(2)
