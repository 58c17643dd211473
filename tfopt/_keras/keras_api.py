"""Both Keras generations behind one set of functions; the only module that imports either of them.

A model's generation is read from its class, never from the environment: ``"tf_keras"`` is Keras 2
(the package tf_keras), ``"keras"`` is Keras 3 running on TensorFlow.
"""

import functools
import importlib
import json
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from tfopt._base.files import existing, replacing
from tfopt._keras import extras
from tfopt._keras.trust import refuse_code
from tfopt.errors import InputError, MissingFileError, ModelFileError

Generation = Literal["tf_keras", "keras"]
_WEIGHTS = "model.weights.h5"
GENERATIONS: tuple[Generation, ...] = ("tf_keras", "keras")


class Weight(NamedTuple):
    """One variable of one layer.

    Attributes:
        layer_path: names from the model down to the layer, joined by "/".
        layer: the Keras layer that owns the variable.
        name: last part of the variable's own name, for example "kernel".
        variable: the Keras variable (a tf.Variable in tf_keras).
    """

    layer_path: str
    layer: Any
    name: str
    variable: Any

    @property
    def path(self) -> str:
        return f"{self.layer_path}/{self.name}"


def keras_module(generation: str) -> Any:
    """The module `tf_keras` or `keras`; Keras 3 must run on TensorFlow.

    Raises:
        InputError: an unknown generation, or Keras 3 on another backend.
    """
    if generation not in GENERATIONS:
        raise InputError(f"generation must be 'tf_keras' or 'keras', got {generation!r}")
    module = importlib.import_module(generation)
    if generation == "keras" and module.backend.backend() != "tensorflow":
        raise InputError(
            f"Keras 3 must run on TensorFlow, but its backend is {module.backend.backend()!r}: "
            "start Python with KERAS_BACKEND=tensorflow or edit ~/.keras/keras.json"
        )
    return module


def generation_of(obj: Any) -> Generation:
    """The generation of a model, layer, optimizer or callback, told from its classes.

    Raises:
        InputError: the object belongs to neither.
    """
    for base in type(obj).__mro__:
        package = base.__module__.partition(".")[0]
        if package in GENERATIONS:
            return package
    raise InputError(f"expected a tf_keras or Keras 3 object, got {type(obj).__module__}.{type(obj).__name__}")


def is_model(obj: Any) -> bool:
    """Whether `obj` is a model of either generation."""
    return any(g in sys.modules and isinstance(obj, sys.modules[g].Model) for g in GENERATIONS)


def check_model(obj: Any, name: str = "model") -> Any:
    """Returns `obj` if it is a built Keras model, else raises InputError."""
    if not is_model(obj):
        raise InputError(f"{name} must be a tf_keras or Keras 3 model, got {type(obj).__name__}")
    if not obj.built:
        raise InputError(f"{name} {obj.name!r} has no weights yet: build it or call it on data first")
    return obj


def sublayers(layer: Any) -> list[Any]:
    """The layers that `layer` holds directly, in the order in which they were made."""
    return list(layer._flatten_layers(recursive=False, include_self=False))


def walk(layer: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (path, layer) for every layer below `layer`, depth first, each layer once."""
    seen: set[int] = set()

    def visit(parent: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        for child in sublayers(parent):
            if id(child) in seen:
                continue
            seen.add(id(child))
            child_path = f"{prefix}/{child.name}" if prefix else child.name
            yield child_path, child
            yield from visit(child, child_path)

    yield from visit(layer, path)


def operations(model: Any) -> Iterator[tuple[str, Any]]:
    """Yields (path, operation) for the nodes of functional models that are no layers (Keras 3 has such)."""
    for path, layer in [("", model), *walk(model)]:
        for operation in getattr(layer, "operations", None) or ():
            if not hasattr(operation, "_flatten_layers"):
                yield (f"{path}/{operation.name}" if path else operation.name), operation


def consumers(node: Any) -> list[Any]:
    """The layers and operations that read the outputs of a node of a functional model."""
    if generation_of(node) == "tf_keras":
        return [n.layer for n in node._outbound_nodes]
    return [n.operation for n in node._outbound_nodes]


def training_flag(layer: Any) -> Any:
    """The value of `training` for the call that is under way: True, False, or None where nobody said."""
    if generation_of(layer) == "tf_keras":
        utils = importlib.import_module("tf_keras.src.engine.base_layer_utils")
        return utils.call_context().training
    context = importlib.import_module("keras.src.backend.common.global_state")
    under_way = context.get_global_attribute("current_call_ctx")
    return None if under_way is None else under_way.get_value("training")


def add_trainable(layer: Any, name: str, value: np.ndarray) -> Any:
    """Adds a trainable variable to a built layer and returns it; `remove_trainable` takes it off again."""
    keras = keras_module(generation_of(layer))
    initializer = keras.initializers.Constant(0.0)
    if generation_of(layer) == "keras":
        layer._tracker.unlock()
    variable = layer.add_weight(name=name, shape=value.shape, initializer=initializer, trainable=True)
    if generation_of(layer) == "keras":
        layer._tracker.lock()
    variable.assign(value)
    return variable


def remove_trainable(layer: Any, variable: Any) -> None:
    """Takes off what `add_trainable` added."""
    if generation_of(layer) == "keras":
        layer._untrack_variable(variable)
    else:
        layer._trainable_weights = [v for v in layer._trainable_weights if v is not variable]


def own_variables(layer: Any) -> list[Any]:
    """The variables that the layer made itself, those of its sublayers excluded."""
    if generation_of(layer) == "tf_keras":
        return list(layer._trainable_weights) + list(layer._non_trainable_weights)
    return list(layer._trainable_variables) + list(layer._non_trainable_variables)


def weights(model: Any) -> list[Weight]:
    """Every variable of the model with the layer that owns it; a shared variable comes once."""
    found, seen = [], set()
    for path, layer in [("", model), *walk(model)]:
        for variable in own_variables(layer):
            if id(variable) not in seen:
                seen.add(id(variable))
                name = variable.name.rpartition("/")[2].partition(":")[0]
                found.append(Weight(path or model.name, layer, name, variable=variable))
    return found


def tf_variable(variable: Any) -> Any:
    """The TensorFlow variable behind a Keras variable of either generation."""
    return variable.value if type(variable).__module__.startswith("keras.") else variable


def to_numpy(variable: Any) -> np.ndarray:
    """The variable's value as an array."""
    return np.asarray(tf_variable(variable).numpy())  # asarray alone fails on mirrored variables


def learning_step(model: Any) -> int:
    """Optimizer steps taken so far; the only count that `steps_per_execution` does not distort."""
    return int(to_numpy(model.optimizer.iterations))


class Callback:
    """Base of callbacks that work in `fit` of either generation.

    An instance also derives from the `Callback` classes of both generations: which one the model is of is
    only known in `fit`.
    """

    params: dict[str, Any]  # set by Keras: "epochs", "steps" (None where it does not know) and "verbose"
    _model: Any = None

    @property
    def model(self) -> Any:
        return self._model

    @model.setter  # Keras 3 has no setter and tf_keras assigns: one property that suits both
    def model(self, model: Any) -> None:
        self._model = model

    def set_model(self, model: Any) -> None:
        self._model = model

    def __new__(cls, *args: Any, **kwargs: Any) -> "Callback":
        return object.__new__(_callback_class(cls))  # type: ignore[arg-type]


@functools.cache
def _callback_class(cls: type) -> type:
    bases = tuple(importlib.import_module(g).callbacks.Callback for g in GENERATIONS)
    bases = tuple(b for b in bases if not issubclass(cls, b))
    return type(cls.__name__, (cls, *bases), {"__module__": cls.__module__, "__init__": _init_all(cls, bases)})


def _init_all(cls: type, bases: tuple[type, ...]) -> Any:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        for base in bases:
            base.__init__(self)  # type: ignore[misc]
        cls.__init__(self, *args, **kwargs)  # type: ignore[misc]

    return __init__


def save_model(model: Any, path: str | Path) -> Path:
    """Saves the model in the `.keras` format, without optimizer; the file appears whole or not at all."""
    path = Path(path)
    if path.suffix != ".keras":
        raise InputError(f"a Keras model file must end in .keras, got {path.name!r}")
    with replacing(path) as temporary:
        # Neither generation can leave the optimizer's state (twice the weights) out of this format.
        optimizer = getattr(model, "optimizer", None)
        if optimizer is not None:
            model.optimizer = None
        try:
            model.save(temporary)
            _append(temporary, extras.of(model))
        finally:
            if optimizer is not None:
                model.optimizer = optimizer
    return path


def _append(archive: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(archive, "a") as file:
        for name, content in members.items():
            file.writestr(name, content)


def load_model(path: str | Path) -> Any:
    """Loads a `.keras` or `.h5` file in the generation that wrote it, without running code from it.

    Raises:
        MissingFileError: no such file.
        ModelFileError: not a Keras model, damaged, or naming code that would run.
    """
    path = existing(path, "model file")
    try:
        config, generation = _read_config(path)
        # What it was compiled with is not read.
        refuse_code({k: v for k, v in config.items() if k != "compile_config"}, path)
        keras = keras_module(generation)
        if generation == "tf_keras" and zipfile.is_zipfile(path):
            model = _load_tf_keras_archive(keras, path, config)
        else:
            model = keras.models.load_model(path, compile=False)
    except (ModelFileError, MissingFileError):
        raise
    except (ValueError, OSError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, OSError) and error.errno is not None and not _says_damaged(error):
            raise  # the system's own trouble (a full disk, no permission), not the file's
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelFileError(f"not a Keras model file, or a damaged one: {path} ({reason})") from error
    if not is_model(model):
        raise ModelFileError(f"not a Keras model file: {path} holds a {type(model).__name__}")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            extra = {n: file.read(n) for n in file.namelist() if n.startswith("tfopt_")}
        if extra:
            extras.put(model, extra)
    return model


def _says_damaged(error: OSError) -> bool:
    """h5py reports a damaged file as an OSError, on some paths with an errno."""
    return "file signature" in str(error) or "truncated" in str(error)


def _load_tf_keras_archive(keras: Any, path: Path, config: dict[str, Any]) -> Any:
    """Loads a `.keras` archive of tf_keras from an unpacked copy of its weights.

    tf_keras reads the HDF5 file through the archive, which starts over at every seek backwards: a model of
    90 MB took 17 seconds to load, this way one.
    """
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if _WEIGHTS not in names or any(name.startswith("assets/") for name in names):
            return keras.models.load_model(path, compile=False)
        architecture = {key: value for key, value in config.items() if key != "compile_config"}
        model = keras.saving.deserialize_keras_object(architecture, safe_mode=True)
        with tempfile.TemporaryDirectory(prefix="tfopt-") as folder:
            unpacked = Path(archive.extract(_WEIGHTS, folder))
            _refuse_links(unpacked, path)
            model.load_weights(unpacked)
    return model


def _read_config(path: Path) -> tuple[dict[str, Any], str]:
    """The model's configuration and generation, read without building anything."""
    if path.is_file() and zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                config = json.loads(archive.read("config.json"))
                version = json.loads(archive.read("metadata.json"))["keras_version"]
        except (KeyError, ValueError, zipfile.BadZipFile) as error:
            raise ModelFileError(f"not a Keras model file: {path} ({error})") from error
        return config, "tf_keras" if str(version).startswith("2.") else "keras"
    if path.is_file():
        return _read_hdf5_config(path)
    raise ModelFileError(f"not a Keras model file: {path}")


def _read_hdf5_config(path: Path) -> tuple[dict[str, Any], str]:
    import h5py

    if not h5py.is_hdf5(path):
        raise ModelFileError(f"not a Keras model file: {path} (neither a .keras archive nor HDF5)")
    _refuse_links(path, path)
    with h5py.File(path, "r") as handle:
        text, version = handle.attrs.get("model_config"), handle.attrs.get("keras_version", "2")
    if text is None:
        raise ModelFileError(f"not a Keras model file: {path} (weights only, no model configuration)")
    text = text.decode() if isinstance(text, bytes) else text
    version = version.decode() if isinstance(version, bytes) else version
    return json.loads(text), "tf_keras" if str(version).startswith("2") else "keras"


def _refuse_links(hdf5: Path, path: Path) -> None:
    """tf_keras follows links into other files of the machine."""
    import h5py

    def external(name: str, link: Any) -> str | None:
        return name if isinstance(link, h5py.ExternalLink) else None  # a name ends the visit

    with h5py.File(hdf5, "r") as handle:
        found = handle.visititems_links(external)
    if found is not None:
        raise ModelFileError(f"{path} points into other files ({found}); such a file is not loaded")
