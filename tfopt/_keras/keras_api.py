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
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from tfopt._base.archives import write_member
from tfopt._base.files import replacing
from tfopt._keras import extras
from tfopt.errors import InputError

# Members of a `.keras` archive.
CONFIG, FACTS, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
_NO_DATE = "1980-01-01@00:00:00"
Generation = Literal["tf_keras", "keras"]
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


def check_finite(checked: Iterable[Weight]) -> None:
    """Raises InputError if a weight holds NaN or infinity; it is named."""
    for weight in checked:
        value = to_numpy(weight.variable)
        # NumPy knows nothing of bfloat16.
        broken = int((~np.isfinite(value if value.dtype.isbuiltin else value.astype(np.float32))).sum())
        if broken:
            raise InputError(
                f"weight {weight.path!r} holds NaN or infinity ({broken} of {value.size} values): its training "
                "diverged, or its file is damaged"
            )


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
        both = list(layer._trainable_weights) + list(layer._non_trainable_weights)
        return [variable for variable in both if hasattr(variable, "shape")]  # not the vocabulary of a lookup
    return list(layer._trainable_variables) + list(layer._non_trainable_variables)


def weights(model: Any) -> list[Weight]:
    """Every variable of the model with the layer that owns it; a shared variable comes once.

    One without a fixed shape, such as the values that a `Discretization` has seen, is no weight.
    """
    found, seen = [], set()
    for path, layer in [("", model), *walk(model)]:
        for variable in own_variables(layer):
            if id(variable) not in seen and None not in tuple(variable.shape):
                seen.add(id(variable))
                name = variable.name.rpartition("/")[2].partition(":")[0]
                if name == "scale" and _is_rms_norm(layer):  # its own word for what other norms call so
                    name = "gamma"
                found.append(Weight(path or model.name, layer, name, variable=variable))
    return found


def _is_rms_norm(layer: Any) -> bool:
    return type(layer).__name__ == "RMSNormalization" and type(layer).__module__.startswith("keras.")


def state_of(model: Any) -> list[Any]:
    """Every variable of the model but those of its metrics: weights first, then states of random numbers."""
    metrics = {id(v) for metric in getattr(model, "metrics", ()) for v in metric.variables}
    found = [w.variable for w in weights(model)]
    seen = {id(v) for v in found} | metrics
    return found + [v for v in model.variables if id(v) not in seen]


def bytes_of(model: Any) -> int:
    """Bytes of all variables."""
    variables = [tf_variable(w.variable) for w in weights(model)]
    return sum(int(np.prod(v.shape)) * v.dtype.size for v in variables)


def tf_variable(variable: Any) -> Any:
    """The TensorFlow variable behind a Keras variable of either generation."""
    return variable.value if type(variable).__module__.startswith("keras.") else variable


def to_numpy(variable: Any) -> np.ndarray:
    """The variable's value as an array."""
    return np.asarray(tf_variable(variable).numpy())  # asarray alone fails on mirrored variables


def snapshot(variable: Any) -> np.ndarray:
    """The variable's value as it is now, without a copy: TensorFlow makes one when the variable is next changed."""
    return np.asarray(tf_variable(variable).read_value())


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
    """Saves the model in the `.keras` format, without optimizer; the file appears whole or not at all.

    The same model gives the same bytes at any time of day.
    """
    path = Path(path)
    if path.suffix != ".keras":
        raise InputError(f"a Keras model file must end in .keras, got {path.name!r}")
    with replacing(path, needs=2 * bytes_of(model)) as temporary:  # a first copy, and the settled one
        # Neither generation can leave the optimizer's state (twice the weights) out of this format.
        optimizer = getattr(model, "optimizer", None)
        if optimizer is not None:
            model.optimizer = None
        try:
            with tempfile.TemporaryDirectory(prefix=".tfopt.tmp.", dir=temporary.parent) as folder:
                model.save(Path(folder, path.name))
                _write_settled(Path(folder, path.name), temporary, extras.of(model))
        finally:
            if optimizer is not None:
                model.optimizer = optimizer
    return path


def _write_settled(given: Path, archive: Path, members: dict[str, bytes]) -> None:
    """Copies an archive without the time of day, so that the same model gives the same bytes, and adds members."""
    with zipfile.ZipFile(given) as source, zipfile.ZipFile(archive, "w") as file:
        version = json.loads(source.read(FACTS))["keras_version"]
        facts = json.dumps({"keras_version": version, "date_saved": _NO_DATE}).encode()
        for name, content in {FACTS: facts, **members}.items():
            file.writestr(zipfile.ZipInfo(name), content)
        for member in source.infolist():
            if member.filename != FACTS:
                with source.open(member) as stored:
                    write_member(file, member.filename, stored, size=member.file_size)


def archive_members(model: Any) -> dict[str, bytes]:
    """What a `.keras` file of the model has beside weights."""
    generation = generation_of(model)
    with importlib.import_module(f"{generation}.src.saving.serialization_lib").ObjectSharingScope():
        config = keras_module(generation).saving.serialize_keras_object(model)
    facts = {"keras_version": keras_module(generation).__version__, "date_saved": _NO_DATE}
    config.pop("compile_config", None)
    return {CONFIG: json.dumps(config).encode(), FACTS: json.dumps(facts).encode(), **extras.of(model)}
