"""Keras files of both generations, loaded without running code from them and without room for what they lack."""

import errno
import logging
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from tfopt._base.archives import check_members, read_member
from tfopt._base.foreign import parse_json, regular, to_text
from tfopt._base.limits import MAX_MEMBER_BYTES, MAX_TEXT_BYTES
from tfopt._base.manifests import check_if_listed
from tfopt._keras import extras
from tfopt._keras.hdf5 import check_hdf5
from tfopt._keras.keras_api import CONFIG, FACTS, WEIGHTS, is_model, keras_module
from tfopt._keras.room import room_for
from tfopt._keras.trust import refuse_code, untrusted
from tfopt.errors import MissingFileError, ModelFileError

_log = logging.getLogger(__name__)


def load_model(path: str | Path, *, trust: bool = False) -> Any:
    """Loads a `.keras` or `.h5` file in the generation that wrote it, without running code from it.

    Args:
        path: the file.
        trust: run what the file names: Lambda layers, functions and classes of any module, files that it reads.
            What that opens is logged as a warning.

    Raises:
        MissingFileError: no such file.
        ModelFileError: not a Keras model, damaged, or naming code that would run.
        DataError: it is of a finished run, and no longer what that wrote.
    """
    path = regular(path, "model file", ModelFileError)
    check_if_listed(path)
    try:
        config, generation = _read_config(path)
        check_config(config, path, generation=generation, trust=trust)
        model = _build(keras_module(generation), path, config, trust=trust)
    except (ModelFileError, MissingFileError):
        raise
    except Exception as error:  # what is damaged fails anywhere in Keras and HDF5, with whatever its bytes lead to
        if is_of_the_system(error):
            raise
        raise ModelFileError(f"not a Keras model file, or a damaged one: {path} ({reason_of(error)})") from error
    if not is_model(model):
        raise ModelFileError(f"not a Keras model file: {path} holds a {type(model).__name__}")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = [n for n in archive.namelist() if n.startswith(extras.PREFIX)]
            members = {n: read_member(archive, n, most=MAX_MEMBER_BYTES, path=path) for n in names}
        for name in {*extras.SHAPES} & members.keys():
            to_text(members[name], f"{path}: {name}", ModelFileError)
        if members:  # else somebody else saved it
            extras.put(model, members)
    return model


def check_model_file(path: str | Path) -> None:
    """Checks a file as far as that goes without building the model; raises as `load_model`."""
    path = regular(path, "model file", ModelFileError)
    config, generation = _read_config(path)
    check_config(config, path, generation=generation, trust=False)


def reason_of(error: Exception) -> str:
    """The first line that an error says."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def is_of_the_system(error: Exception) -> bool:
    """Whether it is the system's own trouble (a full disk, no permission), not the file's."""
    if not isinstance(error, OSError) or error.errno is None:
        return False
    # h5py reports a damaged file as an OSError, on some paths with an errno; a member of an archive whose place is
    # before the file is sought there.
    return error.errno != errno.EINVAL and not any(w in str(error) for w in ("file signature", "truncated"))


def check_config(config: dict[str, Any], path: Path, *, generation: str, trust: bool) -> None:
    """Refuses a configuration that would run code or read files, or tells what it holds where it is trusted."""
    # What the model was compiled with is not read.
    read = {key: value for key, value in config.items() if key != "compile_config"}
    if not trust:
        refuse_code(read, path, generation=generation)
        return
    for reason in untrusted(read, generation):
        _log.warning("%s is trusted: it holds %s", path, reason)


def _build(keras: Any, path: Path, config: dict[str, Any], trust: bool) -> Any:
    """Builds the model, and loads weights from an unpacked copy.

    tf_keras reads the HDF5 file through the archive, which starts over at every seek backwards: a model of
    90 MB took 17 seconds to load, this way one.
    """
    if not zipfile.is_zipfile(path):
        stored = check_hdf5(path, path.stat().st_size, path)
        with room_for(stored, path):
            return keras.models.load_model(path, compile=False, safe_mode=not trust)
    with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory(prefix="tfopt-") as folder:
        check_members(archive, path)
        names = archive.namelist()
        if WEIGHTS not in names:
            raise ModelFileError(f"not a Keras model file: {path} has no {WEIGHTS}")
        unpacked = Path(archive.extract(WEIGHTS, folder))
        stored = check_hdf5(unpacked, unpacked.stat().st_size, path)
        with room_for(stored, path):
            if any(name.startswith("assets/") for name in names):
                return keras.models.load_model(path, compile=False, safe_mode=not trust)
            architecture = {key: value for key, value in config.items() if key != "compile_config"}
            model = keras.saving.deserialize_keras_object(architecture, safe_mode=not trust)
        model.load_weights(unpacked)
    return model


def _read_config(path: Path) -> tuple[dict[str, Any], str]:
    """The model's configuration and generation, read without building anything."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                text = read_member(archive, CONFIG, most=MAX_TEXT_BYTES, path=path)
                facts = read_member(archive, FACTS, most=MAX_TEXT_BYTES, path=path)
            version = parse_json(facts, f"{FACTS} in {path}", ModelFileError)["keras_version"]
        else:
            text, version = _read_hdf5_config(path)
    except ModelFileError:
        raise
    except (KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise ModelFileError(f"not a Keras model file: {path} ({reason_of(error)})") from error
    config = parse_json(text, f"the configuration in {path}", ModelFileError)
    if not isinstance(config, dict):
        raise ModelFileError(f"not a Keras model file: {path} (its configuration is a {type(config).__name__})")
    return config, "tf_keras" if str(version).startswith("2") else "keras"


def _read_hdf5_config(path: Path) -> tuple[bytes, str]:
    import h5py

    if not h5py.is_hdf5(path):
        raise ModelFileError(f"not a Keras model file: {path} (neither a .keras archive nor HDF5)")
    with h5py.File(path, "r") as handle:
        text, version = handle.attrs.get("model_config"), handle.attrs.get("keras_version", "2")
    if text is None:
        raise ModelFileError(f"not a Keras model file: {path} (weights only, no model configuration)")
    text = text if isinstance(text, bytes) else str(text).encode("utf-8", "surrogatepass")
    if len(text) > MAX_TEXT_BYTES:
        raise ModelFileError(f"{path} has a configuration of {len(text):,} bytes, more than {MAX_TEXT_BYTES:,}")
    return text, version.decode() if isinstance(version, bytes) else str(version)
