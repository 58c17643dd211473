"""Batches of a dataset in TFRecord files, so that what made them runs once."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfopt._base.files import replacing, sha256, write_json
from tfopt._base.foreign import read_json
from tfopt.errors import DataError, InputError

_RECORDS, _MANIFEST = "batches.tfrecord", "manifest.json"
_BUFFER_BYTES = 1 << 28  # of batches that a pass draws from


def cached(
    data: tf.data.Dataset,
    folder: str | Path,
    fingerprint: str,
    *,
    seed: int = 0,
    epoch: Any = None,
    made: Iterable[Any] | None = None,
) -> tf.data.Dataset:
    """The batches of a dataset, from `folder` if they are there already.

    The first call runs through the dataset once and writes every batch as it is. The folder appears whole or not at
    all. Each pass gives all batches in a new order.

    Args:
        data: batches; what is padded stays so.
        folder: where they are kept.
        fingerprint: of what made them.
        seed: of the order.
        epoch: number of the pass, or a variable that holds it: the order is then the same each time.
        made: the same batches where others make them.

    Raises:
        InputError: a dataset without an end.
        DataError: no batches, or the folder holds batches that something else made, or is damaged.
    """
    if int(data.cardinality()) == tf.data.INFINITE_CARDINALITY:
        raise InputError("a dataset without an end cannot be kept on disk; leave repeat() away")
    folder = Path(folder)
    spec = data.element_spec
    if not folder.exists():
        _write(data if made is None else made, folder, fingerprint)
    count = _check(folder, fingerprint)
    flat = tf.nest.flatten(spec)

    def parse(record: tf.Tensor) -> Any:
        parts = tf.io.parse_tensor(record, tf.string)
        values = [tf.ensure_shape(tf.io.parse_tensor(parts[i], one.dtype), one.shape) for i, one in enumerate(flat)]
        return tf.nest.pack_sequence_as(spec, values)

    path = folder / _RECORDS
    buffer = max(1, min(count, _BUFFER_BYTES * count // path.stat().st_size))
    records = tf.data.TFRecordDataset(str(path))
    if epoch is None:
        records = records.shuffle(buffer, seed=seed)
    else:
        numbers = tf.data.Dataset.from_tensors(0).map(
            lambda _: tf.cast(tf.convert_to_tensor(epoch), tf.int64) + seed
        )
        records = numbers.flat_map(
            lambda number: tf.data.TFRecordDataset(str(path)).shuffle(
                buffer, number, reshuffle_each_iteration=False
            )
        )
    batches = records.map(parse, num_parallel_calls=2, deterministic=True)
    return batches.apply(tf.data.experimental.assert_cardinality(count)).prefetch(2)


def _write(data: Iterable[Any], folder: Path, fingerprint: str) -> None:
    count = 0
    with replacing(folder) as temporary:
        temporary.mkdir()
        with tf.io.TFRecordWriter(str(temporary / _RECORDS)) as writer:
            for batch in data:
                parts = [tf.io.serialize_tensor(value) for value in tf.nest.flatten(batch)]
                writer.write(tf.io.serialize_tensor(tf.stack(parts)).numpy())
                count += 1
        if not count:
            raise DataError(f"no batches to keep in {folder}: the dataset is empty")
        facts = {"batches": count, "fingerprint": fingerprint, "sha256": sha256(temporary / _RECORDS)}
        write_json(temporary / _MANIFEST, {"schema": 1, **facts})


def _check(folder: Path, fingerprint: str) -> int:
    """The number of batches."""
    try:
        facts = read_json(folder / _MANIFEST, "manifest")
        found, count = facts["fingerprint"], int(facts["batches"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} holds no batches of a teacher: {error}; choose another folder") from error
    if found != fingerprint:
        raise DataError(f"{folder} holds what another teacher made, or other features; remove it or choose another")
    if not (folder / _RECORDS).exists() or sha256(folder / _RECORDS) != facts["sha256"]:
        raise DataError(f"{folder / _RECORDS} is missing or damaged; remove {folder} to make it anew")
    return count
