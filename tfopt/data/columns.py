"""Batches of records of any features: outputs of a model, data for a calibration, texts."""

from pathlib import Path
from typing import Any

import tensorflow as tf

from tfopt.data.records.manifest import SPLIT, read_manifest
from tfopt.data.records.read import Order, Source, read_batches


def record_batches(
    folder: str | Path, batch_size: int, *, split: str = SPLIT, order: Order | None = None
) -> tf.data.Dataset:
    """Batches of ``{feature: values}`` with a row for each record; where they differ in length, RaggedTensors.

    Args:
        folder: from `data.records.write.write_records`, or any packed folder.
        batch_size: records per batch; the last one of a pass may be smaller.
        split: to read.
        order: which records come, and when; by default all of them in the order of the files.

    Raises:
        DataError: a shard disagrees with the manifest.
        InputError: a bad batch size.
    """
    order = order or Order()

    def cut(features: dict[str, Any], rows: tf.Tensor) -> dict[str, Any]:
        return {name: tf.gather(value, rows) for name, value in features.items()}

    source = Source.open(folder, read_manifest(folder, split), order.on_damage)
    return read_batches(source, batch_size, order, cut=cut)
