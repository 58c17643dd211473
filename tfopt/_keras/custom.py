"""Classes of somebody's own, from the module or file that defines them."""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from tfopt._keras import keras_api
from tfopt.errors import InputError, MissingFileError

_GENERATIONS = {"keras": "keras", "tf_keras": "tf_keras"}  # package of a base class -> generation


def register_classes(sources: Sequence[str]) -> None:
    """Runs modules or files, and lets models name the Keras classes that they define.

    Args:
        sources: names of modules, such as "package.layers", or paths of `.py` files.

    Raises:
        MissingFileError: no such file.
        InputError: no such module, one that fails, or one without classes of Keras.
    """
    for source in sources:
        found = {name: value for name, value in vars(_module(source)).items() if _generation(value) is not None}
        if not found and not _has_registered(source):
            raise InputError(f"{source!r} defines no layers, models or other classes of Keras")
        for name, value in found.items():
            registry = keras_api.keras_module(str(_generation(value))).saving.get_custom_objects()
            if value not in registry.values():  # else it is there under a name of its own
                registry[name] = value


def _has_registered(package: str) -> bool:
    """Whether classes of a package have registered themselves, as those of KerasHub do."""
    known = (keras_api.keras_module(generation).saving.get_custom_objects() for generation in _GENERATIONS.values())
    return any(value.__module__.partition(".")[0] == package for registry in known for value in registry.values())


def _module(source: str) -> ModuleType:
    path = Path(source)
    if path.suffix == ".py" and not path.is_file():
        raise MissingFileError(f"no file {source}, which was to be imported")
    try:
        if path.suffix != ".py":
            return importlib.import_module(source)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except Exception as error:  # whatever somebody's own code raises
        raise InputError(f"importing {source!r} failed: {type(error).__name__}: {error}") from error
    return module


def _generation(value: Any) -> str | None:
    """The generation whose class it derives from; None for what is no such class, or Keras's own."""
    if not isinstance(value, type) or value.__module__.partition(".")[0] in _GENERATIONS:
        return None
    packages = (base.__module__.partition(".")[0] for base in value.__mro__)
    return next((_GENERATIONS[package] for package in packages if package in _GENERATIONS), None)
