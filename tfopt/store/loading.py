"""Tensors of a store, or of any file that holds some, into the variables of a model."""

import concurrent.futures
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt._base.cores import usable_cores
from tfopt._keras import keras_api
from tfopt._keras.layout import Placed, placed
from tfopt.errors import DataError, InputError
from tfopt.store.index import INDEX
from tfopt.store.reading import Store
from tfopt.store.sources import only_ending, tensors_of

_ALIGNMENT = 64  # of the memory of TensorFlow's tensors


def load(model: Any, source: Any) -> Any:
    """Gives a model the weights of a source, in place, several at a time; the model is not built anew.

    Tensors are found by the path of the weight, by its name in a weights file of Keras, or by the variable's own
    name. Nothing is assigned unless all of them are there and have the right shapes.

    Args:
        model: a built model of either generation.
        source: a store, or whatever `tfopt.store.save` takes.

    Returns:
        The model.

    Raises:
        DataError: a tensor is missing, damaged, or of another shape.
        ModelFileError: a damaged file.
    """
    model = keras_api.check_model(model)
    if isinstance(source, str | Path) and (Path(source) / INDEX).exists():
        source = Store(source)
    if isinstance(source, Store):
        return _from_store(model, source)
    tensors = {}
    for name, named in tensors_of(source):
        tensors[name] = named.value
        if named.keras:
            tensors[named.keras] = named.value
    where = "the source" if not isinstance(source, str | Path) else str(source)
    for one, name in _matched(model, {name: value.shape for name, value in tensors.items()}, where):
        _assign(one.variable, tensors[name])
    return model


def _from_store(model: Any, store: Store) -> Any:
    shapes = {name: tensor.shape for name, tensor in store.tensors.items()}
    names = {tensor.keras: name for name, tensor in store.tensors.items() if tensor.keras}
    matched = _matched(
        model, {**{alias: shapes[name] for alias, name in names.items()}, **shapes}, str(store.folder)
    )
    with concurrent.futures.ThreadPoolExecutor(usable_cores()) as pool:
        list(pool.map(lambda pair: _assign(pair[0].variable, store[names.get(pair[1], pair[1])]), matched))
    return model


def _matched(model: Any, shapes: dict[str, tuple[int, ...]], where: str) -> list[tuple[Placed, str]]:
    """Each weight and the name of its tensor."""
    found = []
    missing = []
    for one in placed(model):
        if one.variable is None:
            continue
        name = next((name for name in (one.path, one.name, one.full_name) if name in shapes), None)
        name = name or only_ending(shapes, one.path)
        if name is None:
            missing.append(one.path)
        elif shapes[name] != tuple(one.variable.shape):
            raise DataError(
                f"{where}: {name!r} has the shape {shapes[name]}, the model's is {tuple(one.variable.shape)}"
            )
        else:
            found.append((one, name))
    if missing:
        raise DataError(f"{where} lacks {len(missing)} weights of model {model.name!r}: {', '.join(missing[:5])}")
    if not found:
        raise InputError(f"model {model.name!r} has no weights")
    return found


def _assign(variable: Any, value: np.ndarray) -> None:
    """Copies an array into memory that becomes the variable's.

    TensorFlow would copy it with the interpreter locked, at half the speed.
    """
    target = keras_api.tf_variable(variable)
    dtype = target.dtype.as_numpy_dtype
    if np.dtype(dtype).kind not in "iuf":  # what DLPack does not know
        target.assign(value.astype(dtype, copy=False))
        return
    size = value.size * np.dtype(dtype).itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    own = memory[start : start + size].view(dtype).reshape(value.shape)
    np.copyto(own, value, casting="same_kind")
    target.assign(tf.experimental.dlpack.from_dlpack(own.__dlpack__()))
