"""Several packed folders as one stream, each with its share of the records."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import tensorflow as tf

from tfopt.data.batches import check_buckets, token_cut
from tfopt.data.records.fields import Field
from tfopt.data.records.manifest import SPLIT, read_manifest
from tfopt.data.records.read import Order, Source, read_batches
from tfopt.errors import DataError, InputError

_CHOICES = 4096  # that are drawn at once


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Sources without an end, of which one is drawn for each record; see `records.read.Records`.

    Attributes:
        sources: with the same features; each goes through its records again and again, in a new order.
        shares: of the records, which sum to 1.
        records: that are drawn in all.
    """

    sources: Sequence[Source]
    shares: Sequence[float]
    records: int

    @property
    def fields(self) -> Mapping[str, Field]:
        return self.sources[0].fields

    def serialized(self, order: Order, epoch: tf.Tensor) -> tf.data.Dataset:
        """The records, one by one; which comes next depends on the seed alone."""
        alone = dataclasses.replace(order, worker=(0, 1))
        streams = [
            tf.data.Dataset.counter().flat_map(lambda turn, source=source: source.serialized(alone, epoch + turn))
            for source in self.sources
        ]
        odds = tf.math.log(tf.constant([list(self.shares)], tf.float32))

        def drawn(number: tf.Tensor) -> tf.data.Dataset:
            choices = tf.random.stateless_categorical(odds, _CHOICES, order.key(epoch, -2 - number), tf.int64)
            return tf.data.Dataset.from_tensor_slices(choices[0])

        choices = tf.data.Dataset.counter().flat_map(drawn)
        found = tf.data.Dataset.choose_from_datasets(streams, choices, stop_on_empty_dataset=False).take(
            self.records
        )
        index, count = order.worker
        return found.shard(count, index) if count > 1 else found


def mixed_batches(
    shares: Mapping[str | Path, float],
    batch_size: int,
    *,
    steps: int,
    buckets: Sequence[int] | None = None,
    seed: int = 0,
    split: str = SPLIT,
    skip: int = 0,
    worker: tuple[int, int] = (0, 1),
) -> tf.data.Dataset:
    """As many batches as there are steps, out of several packed folders, as `data.batches.batches` gives them.

    Args:
        shares: folder -> its weight, above 0: how often a record comes from it, relative to the others.
        batch_size: records per batch.
        steps: batches in all; a folder that is through begins again.
        buckets, seed, split, skip, worker: as for `data.batches.batches`.

    Raises:
        DataError: folders whose records or classes differ, or a damaged shard.
        InputError: weights that are not above 0.
    """
    total = sum(shares.values())
    if not shares or not all(share > 0 for share in shares.values()):
        raise InputError(f"weights must be above 0, got {dict(shares)}")
    manifests = {folder: read_manifest(folder, split) for folder in shares}
    kinds = {str(folder): (m.schema_fields, m.labels) for folder, m in manifests.items()}
    if any(kind != next(iter(kinds.values())) for kind in kinds.values()):
        raise DataError(f"folders that are mixed must have the same features and classes, they have {kinds}")
    if not all(m.records for m in manifests.values()):
        raise DataError(
            f"a folder without records cannot be mixed: {[str(f) for f, m in manifests.items() if not m.records]}"
        )
    limits = check_buckets(buckets, max(m.max_length for m in manifests.values()))
    sources = [Source.open(folder, manifest, "error") for folder, manifest in manifests.items()]
    mixture = Mixture(sources, [share / total for share in shares.values()], steps * batch_size * worker[1])
    order = Order(True, seed, 0, skip=skip, worker=worker, buckets=tuple(limits))
    return read_batches(mixture, batch_size, order, cut=token_cut(limits))
