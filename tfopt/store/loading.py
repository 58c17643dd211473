"""Tensors of a store, or of any file that holds some, into the variables of a model."""

import concurrent.futures
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt._base.cores import usable_cores
from tfopt._keras import keras_api
from tfopt._keras.adapted import follow_weights
from tfopt._keras.layout import Placed, placed
from tfopt.errors import DataError, InputError
from tfopt.store.index import INDEX
from tfopt.store.reading import Store
from tfopt.store.sources import only_ending, tensors_of

_ALIGNMENT = 64  # of the memory of TensorFlow's tensors


def load(model: Any, source: Any, *, mapped: bool = False) -> Any:
    """Gives a model the weights of a source, in place, several at a time; the model is not built anew.

    Tensors are found by the path of the weight, by its name in a weights file of Keras, or by the variable's own
    name. Nothing is assigned unless all of them are there, whole, and have the right shapes.

    Args:
        model: a built model of either generation.
        source: a store, or whatever `tfopt.store.save` takes.
        mapped: of a store in safetensors, let the memory of variables be that of the file until they are changed,
            so that processes share it. The files must not be written to while the model is used; a store that is
            saved over them is another one and does no harm.

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
        return _from_store(model, source, mapped)
    if mapped:
        raise InputError("only a store is mapped into memory: make one with tfopt.store.save")
    tensors = {}
    for name, named in tensors_of(source):
        tensors[name] = named.value
        if named.keras:
            tensors[named.keras] = named.value
    where = "the source" if not isinstance(source, str | Path) else str(source)
    for one, name in _matched(model, {name: value.shape for name, value in tensors.items()}, where):
        _assign(one.variable, tensors[name])
    follow_weights(model)
    return model


def _from_store(model: Any, store: Store, mapped: bool) -> Any:
    shapes = {name: tensor.shape for name, tensor in store.tensors.items()}
    names = {tensor.keras: name for name, tensor in store.tensors.items() if tensor.keras}
    known = {**{alias: shapes[name] for alias, name in names.items()}, **shapes}
    matched = [(one.variable, names.get(name, name)) for one, name in _matched(model, known, str(store.folder))]
    with concurrent.futures.ThreadPoolExecutor(usable_cores()) as pool:
        list(pool.map(lambda pair: store.check(pair[1]), matched))
        list(pool.map(lambda pair: _assign(pair[0], store.unchecked(pair[1]), mapped), matched))
    follow_weights(model)
    return model


def _matched(model: Any, shapes: dict[str, tuple[int, ...]], where: str) -> list[tuple[Placed, str]]:
    """Each weight and the name of its tensor."""
    found: list[tuple[Placed, str]] = []
    missing, used = [], set()
    for one in placed(model):
        if one.variable is None:
            continue
        name = next((name for name in (one.path, one.name, one.full_name) if name in shapes), None)
        name = name or only_ending(shapes, one.path)
        if name is None or name in used:  # a tensor belongs to one weight
            missing.append(one.path)
        elif shapes[name] != tuple(one.variable.shape):
            raise DataError(
                f"{where}: {name!r} has the shape {shapes[name]}, the model's is {tuple(one.variable.shape)}"
            )
        else:
            found.append((one, name))
            used.add(name)
    if missing:
        raise DataError(f"{where} lacks {len(missing)} weights of model {model.name!r}: {', '.join(missing[:5])}")
    if not found:
        raise InputError(f"model {model.name!r} has no weights")
    return found


def _assign(variable: Any, value: np.ndarray, mapped: bool = False) -> None:
    """Gives a variable a copy of an array, or the array's own memory.

    TensorFlow would copy it with the interpreter locked, at half the speed.
    """
    target = keras_api.tf_variable(variable)
    dtype = np.dtype(target.dtype.as_numpy_dtype)
    if dtype.kind not in "iuf":  # what DLPack does not know
        target.assign(value.astype(dtype, copy=False))
        return
    own = value
    if not (mapped and value.dtype == dtype and value.flags.writeable and value.ctypes.data % _ALIGNMENT == 0):
        memory = np.empty(value.size * dtype.itemsize + _ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % _ALIGNMENT
        own = memory[start : start + value.size * dtype.itemsize].view(dtype).reshape(value.shape)
        np.copyto(own, value, casting="same_kind")
    target.assign(tf.experimental.dlpack.from_dlpack(own.__dlpack__()))
