"""Weights from one kind of file to another; no model is built."""

import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tfopt._base.archives import write_member
from tfopt._base.files import replacing
from tfopt._keras import keras_api
from tfopt.errors import DataError, InputError, ModelFileError
from tfopt.store.sources import (
    GRAPH,
    MEMBERS,
    VALUE,
    Named,
    members_of,
    only_ending,
    tensors_of,
    variable_keys,
)
from tfopt.store.writing import save

_CHECKPOINT = Path("variables", "variables")


def convert(source: Any, target: str | Path, **settings: Any) -> Path:
    """Writes weights as another kind of file; the target appears, or changes, whole or not at all.

    Args:
        source: whatever `tfopt.store.save` takes.
        target: a `.keras` or `.weights.h5` file; the folder of a SavedModel that is there already, whose variables
            get the values; or a folder, which becomes a store.
        **settings: of a store, as for `tfopt.store.save`.

    Returns:
        The target.

    Raises:
        InputError: the target needs what the source does not know: the configuration of the model, or names of
            Keras.
        DataError: the variables of a SavedModel differ from the tensors in names or shapes.
        ModelFileError: a damaged file.
    """
    target = Path(target)
    write = _writer_of(target)
    if write is not None:
        if settings:
            raise InputError(f"{', '.join(settings)} are settings of a store, {target.name} is none")
        return write(source, target)
    if target.suffix in (".h5", ".tflite", ".litertlm", ".onnx"):
        raise InputError(f"cannot write {target.name}: give a .keras or .weights.h5 file, a SavedModel or a folder")
    return save(source, target, **settings).folder


def _writer_of(target: Path) -> Callable[[Any, Path], Path] | None:
    """What writes this kind of target; None for a store."""
    if target.suffix == ".keras":
        return _to_archive
    if target.name.endswith(".weights.h5"):
        return _to_hdf5
    return _into_saved_model if (target / "saved_model.pb").exists() else None


def _to_hdf5(source: Any, target: Path) -> Path:
    with replacing(target) as temporary:
        _write_hdf5(tensors_of(source), temporary)
    return target


def _write_hdf5(tensors: Iterator[tuple[str, Named]], path: Path) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file.create_group("vars")  # of the model itself, which tf_keras expects even where it is empty
        for name, named in tensors:
            if not named.keras:
                raise InputError(
                    f"the source does not tell where Keras keeps {name!r}: load it into a model with "
                    "tfopt.store.load and save that"
                )
            plain = named.value.dtype.kind in "biufc"
            data = file.create_dataset(
                named.keras, data=named.value if plain else named.value.view(f"V{named.value.itemsize}")
            )
            if not plain:
                data.attrs["dtype"] = named.value.dtype.name


def _to_archive(source: Any, target: Path) -> Path:
    members = members_of(source)
    if not set(MEMBERS) <= set(members):
        raise InputError("the source has no configuration of a model, which a .keras file needs; write .weights.h5")
    with replacing(target) as temporary:
        weights = temporary.with_name(f"{temporary.name}.h5")
        try:
            _write_hdf5(tensors_of(source), weights)
            with zipfile.ZipFile(temporary, "w") as archive:
                for name, content in members.items():
                    archive.writestr(zipfile.ZipInfo(name), content)
                with weights.open("rb") as written:
                    write_member(archive, keras_api.WEIGHTS, written, size=weights.stat().st_size)
        finally:
            weights.unlink(missing_ok=True)
    return target


def _into_saved_model(source: Any, target: Path) -> Path:
    """Writes the checkpoint of a SavedModel anew; its graph and its functions stay."""
    import tensorflow as tf
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import trackable_object_graph_pb2

    try:
        reader = tf.train.load_checkpoint(str(target / _CHECKPOINT))
        keys = variable_keys(trackable_object_graph_pb2.TrackableObjectGraph.FromString(reader.get_tensor(GRAPH)))
        values: dict[str, Any] = {key: reader.get_tensor(key) for key in reader.get_variable_to_shape_map()}
    except (tf.errors.OpError, DecodeError, ValueError, RuntimeError) as error:
        raise ModelFileError(f"{target} is a damaged SavedModel: {str(error).splitlines()[0]}") from error
    names: dict[str, str] = {}
    for key, full_name in keys.items():  # one whose name is taken goes by its key, as when it is read
        names[full_name if full_name not in names else key.removesuffix(VALUE)] = key
    seen = set()
    for name, named in tensors_of(source):
        place = names.get(named.variable) or names.get(name) or names.get(only_ending(names, name) or "")
        if place is None:
            continue
        if place in seen:
            raise DataError(f"two tensors of the source belong to variable {keys[place]!r} of {target}")
        have = np.asarray(values[place])
        if have.shape != named.value.shape:
            raise DataError(
                f"{target}: variable {name!r} has the shape {have.shape}, the tensor {named.value.shape}"
            )
        values[place] = named.value.astype(have.dtype)
        seen.add(place)
    missing = [keys[key] for key in keys if key not in seen]
    if missing:
        raise DataError(f"the source lacks {len(missing)} variables of {target}: {', '.join(missing[:5])}")
    with replacing(target) as temporary:
        shutil.copytree(target, temporary, ignore=shutil.ignore_patterns("variables"))
        (temporary / "variables").mkdir()
        order = sorted(values)
        tf.raw_ops.SaveV2(
            prefix=str(temporary / _CHECKPOINT), tensor_names=order, shape_and_slices=[""] * len(order),
            tensors=[tf.constant(values[key]) for key in order],
        )  # fmt: skip
    return target
