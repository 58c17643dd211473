"""Room for the variables of a model that a file describes: as much as the file stores of them."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tfopt._base.limits import SPARE_BYTES
from tfopt.errors import ModelFileError


@contextlib.contextmanager
def room_for(stored: int, path: Path) -> Iterator[None]:
    """Variables are made only as long as they are no larger together than what the file stores of them."""
    import tensorflow as tf

    left = stored + SPARE_BYTES

    def create(make: Any, **settings: Any) -> Any:
        nonlocal left
        left -= _bytes_of(settings)
        if left < 0:
            raise ModelFileError(
                f"{path} describes a model with more weights than it stores ({stored:,} bytes): it is damaged, or "
                "made to exhaust the memory"
            )
        return make(**settings)

    with tf.variable_creator_scope(create):
        yield


def _bytes_of(settings: dict[str, Any]) -> int:
    """Bytes of a variable that is about to be made; its value does not exist yet."""
    import tensorflow as tf

    value, shape, dtype = settings["initial_value"], settings.get("shape"), settings.get("dtype")
    if shape is None and callable(value):
        # Keras 3 gives a function that closes over its variable, which knows the shape.
        owners = [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
        shape = next((owner.shape for owner in owners if hasattr(owner, "shape")), None)
    if shape is None and callable(value):
        with tf.Graph().as_default():  # tells the shape, computes nothing
            shape = value().shape
    if shape is None:
        shape = tf.convert_to_tensor(value).shape
    count = tf.TensorShape(shape).num_elements()
    return (count or 0) * (tf.as_dtype(dtype).size if dtype is not None else 4)
