"""Divides batches over replicas and workers, so that each has its rows of every batch."""

from typing import Any, NamedTuple

import tensorflow as tf


class Part(NamedTuple):
    """The rows of a batch that one replica gets.

    Attributes:
        batch: (inputs, labels) or (inputs, labels, weights), with one row where the replica gets none.
        own: how many rows the replica gets, scalar int32.
        rows: of the whole batch, over all replicas, scalar int32.
    """

    batch: Any
    own: tf.Tensor
    rows: tf.Tensor


def divided(data: tf.data.Dataset, strategy: Any) -> tf.data.Dataset:
    """Batches in parts: for each batch a tuple with the `Part` of every replica of this worker.

    Every worker reads the same batches in the same order and takes its rows of them, so that a step is the same on
    any number of replicas; the sharding of TensorFlow gives each worker other batches. To end the iterator of one
    of its distributed datasets takes seconds where cores are few.

    Args:
        data: batches over all replicas together; the last of a pass may have fewer rows.
        strategy: a distribution strategy, or None.
    """
    replicas, own = 1, [0]
    if strategy is not None:
        replicas, own = strategy.num_replicas_in_sync, []

        def note(context: Any) -> int:
            own.append(context.replica_id_in_sync_group)
            return own[-1]

        strategy.experimental_distribute_values_from_function(note)
    # What tunes datasets sleeps for a second or two, and whoever ends an iterator waits for it: after each pass.
    options = tf.data.Options()
    options.autotune.enabled = False
    return data.map(lambda *batch: tuple(_part(batch, i, replicas) for i in own)).prefetch(2).with_options(options)


def part_of_replica(parts: tuple[Part, ...]) -> Part:
    """The part of the replica that this is traced for."""
    number = tf.get_static_value(tf.distribute.get_replica_context().replica_id_in_sync_group)
    return parts[number % len(parts)]


def _part(batch: Any, number: int, replicas: int) -> Part:
    rows = tf.shape(tf.nest.flatten(batch)[0])[0]
    if replicas == 1:
        return Part(batch, rows, rows)
    start, end = rows * number // replicas, rows * (number + 1) // replicas
    first = tf.minimum(start, rows - 1)
    cut = tf.nest.map_structure(lambda value: value[first : tf.maximum(end, first + 1)], batch)
    return Part(cut, end - start, rows)
