"""A teacher's answers by several processes, each with the teacher."""

import contextlib
import functools
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt._base.spread import Workers
from tfopt._keras import keras_api
from tfopt._keras.loading import load_model


def answered_by(
    workers: Workers, teacher: Any, data: tf.data.Dataset
) -> Iterator[tuple[tuple[Any, ...], dict[str, tf.Tensor]]]:
    """Batches of the data in their order, each with what the teacher answers to its first part.

    Args:
        workers: who run it; it goes to them as a file.
        teacher: a model whose outputs have names.
        data: batches of (inputs, ...).
    """
    with tempfile.TemporaryDirectory(prefix="tfopt-") as folder:
        path = Path(folder, "teacher.keras")
        keras_api.save_model(teacher, path)
        kept, asked = itertools.tee(data)
        calls = ((tf.nest.map_structure(lambda value: value.numpy(), batch[0]),) for batch in asked)
        answers = workers.each(_answer, calls, setup=functools.partial(_teacher, path))
        with contextlib.closing(answers):
            for batch, found in zip(kept, answers, strict=True):
                yield batch, {name: tf.constant(value) for name, value in found.items()}


def _teacher(path: Path) -> Any:
    model = load_model(path, trust=True)  # the parent's own
    return tf.function(lambda inputs: model(inputs, training=False), reduce_retracing=True)


def _answer(teacher: Any, inputs: Any) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in teacher(inputs).items()}
