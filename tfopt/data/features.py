"""Records with the features that a task declares: written, checked and read as batches.

Examples of `tf.train.Example` with lists of integers; https://www.tensorflow.org/tutorials/load_data/tfrecord.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from tfopt.data.batches import buckets_up_to, padded
from tfopt.data.records.fields import Field, columns_of
from tfopt.data.records.manifest import Manifest
from tfopt.data.records.mixture import open_split
from tfopt.data.records.read import Order, read_batches
from tfopt.data.records.write import ShardWriter, encode_block

IGNORED = -1  # a tag or class that does not count
_IDS, _MASK = "input_ids", "attention_mask"


@dataclasses.dataclass(frozen=True)
class Feature:
    """One feature of a record.

    Attributes:
        name: in the record.
        kind: "tokens" are ids, one list; "types" one number for each token, an input of the model; "tags" one class
            or `IGNORED` for each token; "class" one class or `IGNORED`; "number" one number, 0 or more.
    """

    name: str
    kind: Literal["tokens", "types", "tags", "class", "number"]

    @property
    def is_list(self) -> bool:
        return self.kind in ("tokens", "types", "tags")

    @property
    def shift(self) -> int:
        """What is added before it is stored, so that `IGNORED` is 0."""
        return -IGNORED if self.kind in ("tags", "class") else 0

    @property
    def field(self) -> Field:
        """How it is stored."""
        return Field("int64", (None,) if self.is_list else ())


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
    fields = {feature.name: feature.field for feature in features}
    values = {f.name: [np.asarray(value, np.int64) + f.shift for value in columns[f.name]] for f in features}
    writer = ShardWriter(folder, split, shards)
    writer.add(encode_block(fields, columns_of(fields, values), shards=shards, key=(seed, 0)))
    lengths = [len(ids) for ids in columns[_IDS]]
    return writer.close(
        **facts, tokens=sum(lengths), max_length=max(lengths, default=0), fields=fields,
        features={feature.name: feature.kind for feature in features},
    )  # fmt: skip


def feature_batches(
    folder: str | Path,
    batch_size: int,
    *,
    split: str | Mapping[str, float],
    shuffle: bool = False,
    seed: int = 0,
    epoch: int | tf.Variable | None = None,
    skip: int = 0,
) -> tf.data.Dataset:
    """Batches of ``({"input_ids", "attention_mask"}, {feature: values})``, all int32; types are inputs too.

    Lists have shape (batch, bucket) and are padded, tags with `IGNORED`; classes and numbers have shape (batch,).

    Args:
        folder: a folder with splits that `write_features` wrote.
        batch_size: records per batch.
        split: to read, or several with the weight of each, as for `data.batches.batches`.
        shuffle: a new order in every pass.
        seed: of the order.
        epoch, skip: as for `data.batches.batches`.

    Raises:
        DataError: a shard disagrees with the manifest.
        InputError: a bad batch size.
    """
    records, manifest = open_split(folder, split, "error")
    features = [Feature(name, kind) for name, kind in manifest.features.items()]  # type: ignore[arg-type]
    buckets = buckets_up_to(manifest.max_length)
    limits = tf.constant(buckets, tf.int64)

    def cut(found: dict[str, Any], rows: tf.Tensor) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        inputs = padded(found[_IDS], rows, limits)
        width, others = tf.shape(inputs[_IDS], tf.int64)[1], [f for f in features if f.name != _IDS]
        values = {f.name: _values(found, f, rows, width=width) for f in others}
        types = {f.name: values.pop(f.name) for f in others if f.kind == "types"}
        return {**inputs, **types}, values

    order = Order(shuffle, seed, epoch, skip=skip, buckets=tuple(buckets))
    return read_batches(records, batch_size, order, cut=cut)


def _values(found: dict[str, Any], feature: Feature, rows: tf.Tensor, *, width: tf.Tensor) -> tf.Tensor:
    """One feature of some records: a number each, or a list that is padded."""
    chosen = tf.gather(found[feature.name], rows)
    if not feature.is_list:
        return tf.cast(chosen, tf.int32) - feature.shift
    same = tf.debugging.assert_equal(
        chosen.row_lengths(), tf.gather(found[_IDS], rows).row_lengths(), "a record has lists of other lengths"
    )
    with tf.control_dependencies([same]):
        padding = feature.shift + IGNORED if feature.kind == "tags" else 0
        dense = chosen.to_tensor(padding, shape=tf.stack([tf.constant(-1, tf.int64), width]))
    return tf.cast(dense, tf.int32) - feature.shift


def weighted_by_what_counts(batches: tf.data.Dataset) -> tf.data.Dataset:
    """(inputs, labels, weights): labels that are ignored weigh 0, and the others more, by their share of the batch.

    Keras leaves a class out by the share of what it is given at once, so that the losses of the parts of a batch
    would not add up to that of the batch.

    Args:
        batches: of inputs and labels, a tensor or several by name, with `IGNORED` where nothing is known.
    """

    def weights_of(labels: tf.Tensor) -> tf.Tensor:
        counts = tf.cast(labels != IGNORED, tf.float32)
        return counts * tf.cast(tf.size(labels), tf.float32) / tf.maximum(tf.reduce_sum(counts), 1.0)

    def weigh(inputs: Any, labels: Any) -> tuple[Any, Any, Any]:
        known = tf.nest.map_structure(lambda value: tf.where(value == IGNORED, tf.zeros_like(value), value), labels)
        return inputs, known, tf.nest.map_structure(weights_of, labels)

    return batches.map(weigh)
