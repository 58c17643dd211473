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


def divided(data: tf.data.Dataset, strategy: Any) -> Any:
    """What a training iterates over: a `Part` for each batch and replica.

    Every worker reads the same batches in the same order and takes its rows of them, so that a step is the same on
    any number of replicas; the sharding of TensorFlow gives each worker other batches.

    Args:
        data: batches over all replicas together; the last of a pass may have fewer rows.
        strategy: a distribution strategy, or None.
    """
    if strategy is None:
        return data.map(lambda *batch: Part(batch, _rows(batch), _rows(batch))).prefetch(tf.data.AUTOTUNE)

    def of_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
        replicas = context.num_replicas_in_sync
        local = replicas // context.num_input_pipelines
        first = context.input_pipeline_id * local

        def of_replicas(*batch: Any) -> tf.data.Dataset:
            rows = _rows(batch)

            def of_replica(number: tf.Tensor) -> Part:
                number = tf.cast(number, tf.int32)
                start, end = rows * number // replicas, rows * (number + 1) // replicas
                first = tf.minimum(start, rows - 1)
                cut = tf.nest.map_structure(lambda value: value[first : tf.maximum(end, first + 1)], batch)
                return Part(cut, end - start, rows)

            return tf.data.Dataset.range(first, first + local).map(of_replica)

        return data.flat_map(of_replicas).prefetch(tf.data.AUTOTUNE)

    return strategy.distribute_datasets_from_function(of_worker)


def _rows(batch: Any) -> tf.Tensor:
    return tf.shape(tf.nest.flatten(batch)[0])[0]
