"""Reading that other machines do: batches made by the workers of a tf.data service.

https://www.tensorflow.org/api_docs/python/tf/data/experimental/service
"""

from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf

from tfopt.data.batches import check_buckets, token_cut
from tfopt.data.records.manifest import SPLIT, read_manifest
from tfopt.data.records.read import Order, Source, read_by_file


def service_batches(
    folder: str | Path,
    batch_size: int,
    *,
    service: str,
    epoch: int = 0,
    buckets: Sequence[int] | None = None,
    shuffle: bool = False,
    seed: int = 0,
    split: str = SPLIT,
    job: str | None = None,
) -> tf.data.Dataset:
    """Batches as `data.batches.batches` gives them, read, parsed and padded by the workers of a service.

    Shards are dealt out to the workers, so that a pass has every record once, unless a worker dies; in which order
    batches arrive depends on the workers. Each shard ends with a batch that may be smaller.

    Args:
        folder: packed by `data.pack`, at a path that all workers see; there should be more shards than workers.
        batch_size: records per batch.
        service: address of the dispatcher, `grpc://host:port`.
        epoch: number of the pass, on which the order depends.
        buckets, shuffle, seed, split: as for `data.batches.batches`.
        job: a name; programs that give the same one share the batches of one pass.

    Raises:
        DataError: a shard disagrees with the manifest.
        InputError: a bad batch size, or buckets that do not hold the longest record.
    """
    manifest = read_manifest(folder, split)
    limits = check_buckets(buckets, manifest.max_length)
    source = Source.open(folder, manifest, "error")
    order = Order(shuffle, seed, epoch, buckets=tuple(limits))
    local = read_by_file(source, batch_size, order, cut=token_cut(limits))
    remote = tf.data.experimental.service.distribute(
        tf.data.experimental.service.ShardingPolicy.DYNAMIC, service, job_name=job
    )
    return local.apply(remote)
