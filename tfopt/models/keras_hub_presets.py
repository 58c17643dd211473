"""Folders of KerasHub, as `save_to_preset` writes them: a task with its preprocessor, or a backbone."""

import importlib
from pathlib import Path
from typing import Any

from tfopt._base.foreign import read_json
from tfopt._keras.hdf5 import check_hdf5
from tfopt._keras.loading import check_config, is_of_the_system, reason_of
from tfopt._keras.room import room_for
from tfopt.errors import InputError, MissingFileError, ModelFileError, TfoptError

TASK, BACKBONE = "task.json", "config.json"
_ASSETS = "assets"


def class_in(folder: Path) -> str:
    """Name of KerasHub's class in a folder.

    Raises:
        ModelFileError: the file that should name it does not.
    """
    file = folder / (TASK if (folder / TASK).is_file() else BACKBONE)
    found = read_json(file, "model configuration", error=ModelFileError)
    name = found.get("class_name") if isinstance(found, dict) else None
    if not isinstance(name, str):
        raise ModelFileError(f"{file} names no class of KerasHub")
    return name


def from_preset(folder: str | Path, *, trust: bool = False) -> Any:
    """The task in a folder of KerasHub, with its preprocessor, or the backbone where there is no task.

    Args:
        folder: what `save_to_preset` wrote.
        trust: run what its files name besides KerasHub's own classes.

    Raises:
        InputError: KerasHub is not installed.
        MissingFileError: the folder is missing.
        ModelFileError: it is damaged, or names code that would run.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MissingFileError(f"model folder not found: {folder}")
    try:
        return _loaded(folder, trust)
    except TfoptError:
        raise
    except Exception as error:  # what is damaged fails anywhere in KerasHub, with whatever its bytes lead to
        if is_of_the_system(error):
            raise
        reason = reason_of(error)
        raise ModelFileError(f"not a folder of KerasHub, or a damaged one: {folder} ({reason})") from error


def _loaded(folder: Path, trust: bool) -> Any:
    for file in sorted(folder.rglob("*.json")):
        if file.relative_to(folder).parts[0] != _ASSETS:  # vocabularies, which build nothing
            config = read_json(file, "model configuration", error=ModelFileError)
            if not isinstance(config, dict):
                raise ModelFileError(f"{file} must hold an object, it holds a {type(config).__name__}")
            check_config(config, file, generation="keras", trust=trust)
    name = class_in(folder)
    try:
        hub = importlib.import_module("keras_hub")
    except ImportError as error:
        raise InputError(f"{folder} is of KerasHub: pip install 'tfopt[kerashub]' ({error})") from error
    kind = getattr(hub.models, name, None)
    if not isinstance(kind, type) or not hasattr(kind, "from_preset"):
        raise ModelFileError(f"{folder} names {name!r}, which is no model of the KerasHub that is installed")
    stored = sum(check_hdf5(path, path.stat().st_size, path) for path in sorted(folder.glob("*.h5")))
    with room_for(stored, folder):
        return kind.from_preset(str(folder.resolve()))  # a name alone may be one of the hub
