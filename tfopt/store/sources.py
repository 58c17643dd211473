"""Tensors by name of whatever holds some: models, files of Keras, SavedModels, stores, dictionaries."""

import tempfile
import zipfile
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tfopt._base.archives import check_members, read_member
from tfopt._base.files import existing
from tfopt._base.foreign import read_bytes
from tfopt._base.limits import MAX_MEMBER_BYTES
from tfopt._keras import extras, keras_api
from tfopt._keras.hdf5 import check_hdf5
from tfopt._keras.layout import placed
from tfopt.errors import InputError, ModelFileError
from tfopt.store.index import INDEX, dtype_of
from tfopt.store.reading import Store

MEMBERS = (keras_api.CONFIG, keras_api.FACTS)
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


class Named(NamedTuple):
    """A tensor, its name in the weights file of Keras, and that of its variable; "" for what is not known."""

    value: np.ndarray
    keras: str = ""
    variable: str = ""


Tensors = Generator[tuple[str, Named], None, None]


def tensors_of(source: Any) -> Tensors:
    """Every tensor of a source, one at a time.

    Raises:
        InputError: a source of another kind.
        MissingFileError: no such file.
        ModelFileError: a damaged one.
    """
    if isinstance(source, Store):
        return _of_store(source)
    if isinstance(source, Mapping):
        return ((str(name), Named(np.asarray(value))) for name, value in source.items())
    if keras_api.is_model(source):
        return _of_model(keras_api.check_model(source))
    if not isinstance(source, str | Path):
        raise InputError(f"weights come from a model, a path or arrays by name, got {type(source).__name__}")
    path = existing(source, "weights")
    if (path / INDEX).exists():
        return _of_store(Store(path))
    if (path / "saved_model.pb").exists():
        return _of_saved_model(path)
    if path.is_file() and zipfile.is_zipfile(path):
        return _of_archive(path)
    if path.is_file() and path.suffix in (".h5", ".hdf5"):
        return _of_hdf5(path, path)
    raise InputError(f"{path} holds no weights: give a .keras, .weights.h5 or .h5 file, a SavedModel or a store")


def members_of(source: Any) -> dict[str, bytes]:
    """What a `.keras` file made of the source has beside weights; nothing where that is not known."""
    if keras_api.is_model(source):
        return keras_api.archive_members(source)
    path = source.folder if isinstance(source, Store) else source
    if not isinstance(path, str | Path):
        return {}
    path = Path(path)
    if path.is_file() and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if _is_member(name)]
            return {name: read_member(archive, name, most=MAX_MEMBER_BYTES, path=path) for name in names}
    if not (path / INDEX).exists():
        return {}
    names = [file.name for file in path.iterdir() if _is_member(file.name)]
    return {name: read_bytes(path / name, "member of a store", most=MAX_MEMBER_BYTES) for name in names}


def _is_member(name: str) -> bool:
    return name in MEMBERS or (name.startswith(extras.PREFIX) and "/" not in name)


def _of_store(store: Store) -> Tensors:
    for name, tensor in store.tensors.items():
        yield name, Named(store[name], tensor.keras, variable=tensor.variable)


def _of_model(model: Any) -> Tensors:
    seen: dict[str, int] = {}
    for one in placed(model):
        value = one.value if one.variable is None else keras_api.snapshot(one.variable)
        seen[one.path] = seen.get(one.path, 0) + 1
        yield (
            one.path if seen[one.path] == 1 else one.name,
            Named(np.asarray(value), one.name, variable=one.full_name),
        )


def _of_archive(path: Path) -> Tensors:
    with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory(prefix="tfopt-") as folder:
        check_members(archive, path)
        if keras_api.WEIGHTS not in archive.namelist():
            raise ModelFileError(f"not a Keras model file: {path} has no {keras_api.WEIGHTS}")
        yield from _of_hdf5(Path(archive.extract(keras_api.WEIGHTS, folder)), path)


def _of_hdf5(path: Path, shown: Path) -> Tensors:
    """Of a weights file as Keras names them; of an older file with a whole model by the variables' names."""
    import h5py

    try:
        check_hdf5(path, path.stat().st_size, shown)
        with h5py.File(path, "r") as file:
            whole = "model_weights" in file
            names: list[str] = []
            seen: set[str] = set()
            file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
            for name in names:
                value = np.asarray(file[name][()])
                if value.dtype.kind == "V" and value.dtype.itemsize == 2:
                    value = value.view(dtype_of("bfloat16"))
                elif value.dtype.kind not in "biufc":
                    raise ModelFileError(f"{shown}: {name} holds {value.dtype}, which is no weight")
                parts = name.split("/")
                if not whole:
                    yield name, Named(value, name)
                elif parts[0] == "model_weights" and len(parts) > 2:
                    # Names of variables; where two models in one have the same, those of the models before them.
                    own = "/".join(parts[2:]).partition(":")[0]
                    yield (own if own not in seen else f"{parts[1]}/{own}"), Named(value)
                    seen.add(own)
    except (
        OSError,
        RuntimeError,
        KeyError,
        ValueError,
        TypeError,
    ) as error:  # h5py answers damage with any of them
        raise ModelFileError(f"{shown} holds no weights that can be read: {error}") from error


def _of_saved_model(path: Path) -> Tensors:
    import tensorflow as tf
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import trackable_object_graph_pb2

    try:
        reader = tf.train.load_checkpoint(str(path / "variables" / "variables"))
        graph = trackable_object_graph_pb2.TrackableObjectGraph.FromString(reader.get_tensor(GRAPH))
        seen: set[str] = set()
        for key, full_name in variable_keys(graph).items():
            name = full_name if full_name not in seen else key.removesuffix(VALUE)
            seen.add(name)
            yield name, Named(np.asarray(reader.get_tensor(key)), variable=full_name)
    except (tf.errors.OpError, DecodeError, ValueError, RuntimeError) as error:
        raise ModelFileError(f"{path} is a damaged SavedModel: {str(error).splitlines()[0]}") from error


def variable_keys(graph: Any) -> dict[str, str]:
    """Key of each variable in a checkpoint -> its full name; a variable that is tracked twice comes once."""
    found: dict[str, str] = {}
    for node in graph.nodes:
        for attribute in node.attributes:
            if attribute.checkpoint_key.endswith(VALUE) and attribute.full_name:
                found.setdefault(attribute.checkpoint_key, attribute.full_name)
    return found


def only_ending(names: Iterable[str], path: str) -> str | None:
    """The one name that ends as a path does, or is its end; None if there are several.

    Keras puts names of models and wrappers before those of variables, or leaves them away, as it was built.
    """
    found = [name for name in names if f"/{name}".endswith(f"/{path}") or f"/{path}".endswith(f"/{name}")]
    return found[0] if len(found) == 1 else None
