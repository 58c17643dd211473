"""Several sources of records as one: which of them the next record comes from is drawn."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfopt.data.records.fields import Field
from tfopt.data.records.manifest import Manifest, read_manifest
from tfopt.data.records.read import Order, Records, Source
from tfopt.errors import DataError, InputError

_CHOICES = 4096  # that are drawn at once


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Sources without an end, of which one is drawn for each record; see `records.read.Records`.

    Attributes:
        sources: with the same features; each goes through its records again and again, in a new order, and a pass
            of the mixture goes on about where the one before ended.
        shares: of the records, which sum to 1.
        records: of a pass.
    """

    sources: Sequence[Source]
    shares: Sequence[float]
    records: int

    @property
    def fields(self) -> Mapping[str, Field]:
        return self.sources[0].fields

    def serialized(self, order: Order, epoch: tf.Tensor) -> tf.data.Dataset:
        """The records, one by one; which comes next depends on the seed and the pass alone."""
        alone = dataclasses.replace(order, worker=(0, 1))
        streams = [
            self._stream(source, alone, epoch, share=share)
            for source, share in zip(self.sources, self.shares, strict=True)
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

    def _stream(self, source: Source, order: Order, epoch: tf.Tensor, *, share: float) -> tf.data.Dataset:
        """A source from the record on at which this pass is expected to begin, so that all of it has its turn."""
        begin = epoch * round(self.records * share)
        first, had = begin // source.records, begin % source.records
        return tf.data.Dataset.counter().flat_map(lambda turn: source.serialized(order, first + turn)).skip(had)


def mixture_of(
    parts: Sequence[tuple[str | Path, str, float]], *, records: int | None = None
) -> tuple[Mixture, Manifest]:
    """Splits of packed folders as a mixture, and what a manifest would say of it.

    Args:
        parts: folder, split, and its weight, above 0: how often a record comes from it, relative to the others.
        records: of a pass; by default as many as there are.

    Raises:
        DataError: splits whose records or classes differ, or without records, or a damaged shard.
        InputError: weights that are not above 0.
    """
    weights = {f"{folder}/{split}": weight for folder, split, weight in parts}
    if len(weights) < len(parts):
        raise InputError(f"a source is there twice in {[f'{folder}/{split}' for folder, split, _ in parts]}")
    if not weights or not all(0 < weight < math.inf for weight in weights.values()):
        raise InputError(f"weights must be above 0 and finite, got {weights}")
    manifests = {f"{folder}/{split}": read_manifest(folder, split) for folder, split, _ in parts}
    kinds = {name: (m.schema_fields, m.labels) for name, m in manifests.items()}
    if any(kind != next(iter(kinds.values())) for kind in kinds.values()):
        raise DataError(f"sources that are mixed must have the same features and classes, they have {kinds}")
    empty = [name for name, m in manifests.items() if not m.records]
    if empty:
        raise DataError(f"a source without records cannot be mixed: {empty}")
    sources = [Source.open(folder, m, "error") for (folder, *_), m in zip(parts, manifests.values(), strict=True)]
    total = sum(m.records for m in manifests.values())
    found = Mixture(sources, [w / sum(weights.values()) for w in weights.values()], records or total)
    sums: dict[str, Any] = {
        name: sum(getattr(m, name) for m in manifests.values()) for name in ("texts", "tokens", "too_long")
    }
    counts = [sum(some) for some in zip(*(m.class_counts for m in manifests.values()), strict=True)]
    told = dataclasses.replace(
        next(iter(manifests.values())), records=total, class_counts=counts, **sums,
        max_length=max(m.max_length for m in manifests.values()),
        longest=max(m.longest for m in manifests.values()),
        shards=[shard for m in manifests.values() for shard in m.shards],
    )  # fmt: skip
    return found, told


def open_split(folder: str | Path, split: str | Mapping[str, float], on_damage: str) -> tuple[Records, Manifest]:
    """The records of a split, or of several with their weights, and their manifest; see `mixture_of`."""
    if not isinstance(split, str):
        if on_damage != "error":
            raise InputError(f"what is mixed is read whole: leave on_damage={on_damage!r} out")
        return mixture_of([(folder, name, weight) for name, weight in split.items()])
    manifest = read_manifest(folder, split)
    return Source.open(folder, manifest, on_damage), manifest
