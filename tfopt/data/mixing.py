"""Several packed folders as one stream, each with its share of the records."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import tensorflow as tf

from tfopt.data.batches import check_buckets, token_cut
from tfopt.data.records.manifest import SPLIT
from tfopt.data.records.mixture import mixture_of
from tfopt.data.records.read import Order, read_batches


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
    parts = [(folder, split, share) for folder, share in shares.items()]
    mixture, manifest = mixture_of(parts, records=steps * batch_size * worker[1])
    limits = check_buckets(buckets, manifest.max_length)
    order = Order(True, seed, 0, skip=skip, worker=worker, buckets=tuple(limits))
    return read_batches(mixture, batch_size, order, cut=token_cut(limits))
