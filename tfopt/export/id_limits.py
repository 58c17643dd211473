"""How many ids each input takes: the rows of the table in which they are looked up."""

from typing import Any

import tensorflow as tf

from tfopt._keras import keras_api
from tfopt._keras.keras_io import Inputs, call, rows_of_tables
from tfopt.export.signatures import MASK


def id_limits(model: Any, inputs: Inputs, length: int) -> dict[str, int]:
    """Input -> rows, as the graph shows them; else found by trying the first id beyond each table of the model.

    Nothing is said of an input that is looked up nowhere, nor on devices that refuse no id (GPUs give zeros).

    Args:
        model: of either generation.
        inputs: of it.
        length: of the sequences that are tried, where it takes any.
    """
    tables = sorted({int(w.variable.shape[0]) for w in keras_api.weights(model) if w.name == "embeddings"})
    shapes = inputs.with_sizes(1, length)
    found = rows_of_tables(model, inputs)
    rest = [n for n, s in shapes.items() if n != MASK and s.dtype.is_integer and n not in found]
    usual = {n: tf.zeros(s.shape, s.dtype) if n != MASK and s.dtype.is_integer else tf.ones(s.shape, s.dtype)
             for n, s in shapes.items() if s.dtype != tf.string}  # fmt: skip
    for name in rest if rest and tables and _takes(model, inputs, usual) else ():
        for rows in tables:
            beyond = tf.fill(shapes[name].shape, tf.cast(rows, shapes[name].dtype))
            if rows <= shapes[name].dtype.max and not _takes(model, inputs, {**usual, name: beyond}):
                found[name] = rows
                break
    return found


def _takes(model: Any, inputs: Inputs, values: dict[str, Any]) -> bool:
    try:
        call(model, inputs, values)
    except (tf.errors.InvalidArgumentError, ValueError, KeyError):
        return False
    return True
