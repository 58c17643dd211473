"""A Keras model's inputs and outputs by name, whichever way it was built."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt._base.arrays import as_numbers
from tfopt._keras.sizes import Size, filled
from tfopt.errors import InputError


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Inputs of a model in the order of their names.

    Attributes:
        specs: name -> TensorSpec; an unknown size is None.
        style: what the model is called with: one "tensor", a "dict" by name, or a "list" in this order.
    """

    specs: dict[str, tf.TensorSpec]
    style: str

    @property
    def has_length(self) -> bool:
        """Whether an axis other than the batch is unknown."""
        return any(None in tuple(spec.shape)[1:] for spec in self.specs.values())

    def with_sizes(self, batch: int | None, size: Size | None) -> dict[str, tf.TensorSpec]:
        """The same inputs with an unknown batch and, if given, every unknown later axis fixed."""
        fixed = {}
        for name, spec in self.specs.items():
            rows, *shape = tuple(spec.shape)
            whole = [batch if rows is None else rows, *filled(name, tuple(shape), size)]
            fixed[name] = tf.TensorSpec(whole, spec.dtype, name=name)
        return fixed

    def arguments(self, named: dict[str, Any]) -> Any:
        """What the model is called with, from values by name."""
        if self.style == "dict":
            return {name: named[name] for name in self.specs}
        values = [named[name] for name in self.specs]
        return values if self.style == "list" else values[0]


def inputs_of(model: Any, given: Any = None) -> Inputs:
    """The inputs of a functional or sequential model, or those that the caller names.

    Args:
        model: a Keras model.
        given: for subclassed models, ``{name: TensorSpec}`` or one TensorSpec, batch axis included.

    Raises:
        InputError: the model does not tell its inputs and none were given.
    """
    if isinstance(given, tf.TensorSpec):
        return Inputs({"inputs": _spec(given, "inputs")}, "tensor")
    if given is not None:
        return Inputs({name: _spec(spec, name) for name, spec in dict(given).items()}, "dict")
    declared = _declared(model)
    if declared is None:
        raise InputError(
            f"model {model.name!r} does not tell its inputs: pass input_signature={{name: tf.TensorSpec(...)}}"
        )
    if isinstance(declared, dict):
        return Inputs({name: _spec(t, name) for name, t in declared.items()}, "dict")
    tensors = list(declared) if isinstance(declared, list | tuple) else [declared]
    specs = {name: _spec(t, name) for t in tensors for name in [str(t.name).partition(":")[0]]}
    return Inputs(specs, "list" if isinstance(declared, list | tuple) else "tensor")


def _declared(model: Any) -> Any:
    """The symbolic inputs as the model was given them: one, a list, or a dictionary; None where there are none."""
    declared = getattr(model, "_inputs_struct", None)  # Keras 3
    if declared is None:
        declared = getattr(model, "_nested_inputs", None)  # tf_keras
    if declared is None:
        declared = getattr(model, "inputs", None)
    return declared[0] if isinstance(declared, list | tuple) and len(declared) == 1 else declared


def sources_of(model: Any, inputs: Inputs) -> dict[str, Any]:
    """Input -> the layer that stands for it in the model's graph, where there is one."""
    declared = _declared(model)
    tensors = list(declared.values()) if isinstance(declared, dict) else tf.nest.flatten(declared)
    if len(tensors) != len(inputs.specs):  # inputs that the caller named, of a model that does not tell its own
        return {}
    found = {n: getattr(t, "_keras_history", (None,))[0] for n, t in zip(inputs.specs, tensors, strict=True)}
    return {name: source for name, source in found.items() if source is not None}


def _spec(tensor: Any, name: str) -> tf.TensorSpec:
    return tf.TensorSpec(tuple(tensor.shape), tf.as_dtype(tensor.dtype), name=name)


def named_outputs(model: Any, value: Any) -> dict[str, tf.Tensor]:
    """Outputs by name: a dictionary keeps its names, others take those of the output layers."""
    if isinstance(value, dict):
        return {name: tf.identity(v, name=name) for name, v in value.items()}
    values = list(value) if isinstance(value, list | tuple) else [value]
    names = output_names(model, len(values))
    return {name: tf.identity(v, name=name) for name, v in zip(names, values, strict=True)}


def takes_length(model: Any, inputs: Inputs, size: Size) -> bool:
    """Whether the model runs on one row of this size; a position table may be shorter."""
    named = {n: ones(spec) for n, spec in inputs.with_sizes(1, size).items()}
    try:
        # Shapes first: with kernels of some processors, a convolution over too small an image gives nothing at all,
        # without an error. The size of a table is only seen when it runs.
        tf.function(lambda: call(model, inputs, named), autograph=False).get_concrete_function()
        call(model, inputs, named)
    except (tf.errors.InvalidArgumentError, ValueError):
        return False
    return True


def ones(spec: Any) -> tf.Tensor:
    """Ones, or texts, of a shape."""
    return tf.fill(spec.shape, "text") if spec.dtype == tf.string else tf.ones(spec.shape, spec.dtype)


def output_names(model: Any, count: int) -> list[str]:
    """Names for outputs that are not a dictionary: those of the output layers if they are distinct."""
    names = [str(name).rpartition("/")[2] for name in getattr(model, "output_names", None) or []]
    if not names and type(model).__name__ == "Sequential":  # Keras 3 names the outputs of functional models only
        names = [model.layers[-1].name]
    if len(names) == count == len(set(names)):
        return names
    return ["outputs"] if count == 1 else [f"output_{i}" for i in range(count)]


def call(model: Any, inputs: Inputs, named: dict[str, Any]) -> dict[str, tf.Tensor]:
    """The model's outputs by name, in inference mode."""
    return named_outputs(model, model(inputs.arguments(named), training=False))


def check_samples(inputs: Inputs, samples: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The model's inputs out of `samples`, with the model's dtypes.

    Raises:
        InputError: an input is missing, empty, misshapen, or not finite.
    """
    if not isinstance(samples, Mapping):
        raise InputError(
            f"representative data must be arrays by name ({', '.join(inputs.specs)}), got {type(samples).__name__}"
        )
    chosen, rows = {}, None
    for name, spec in inputs.specs.items():
        if name not in samples:
            raise InputError(f"representative data lacks input {name!r}; it has {sorted(map(str, samples))}")
        texts = spec.dtype == tf.string
        value = (
            np.asarray(samples[name], object)
            if texts
            else as_numbers(samples[name], f"representative input {name!r}")
        )
        shape = tuple(spec.shape)
        fits = value.ndim == len(shape) and all(
            want in (None, have) for want, have in zip(shape[1:], value.shape[1:], strict=True)
        )
        if not fits or not len(value):
            raise InputError(f"representative input {name!r} must have shape {shape}, got {value.shape}")
        if rows not in (None, len(value)):
            raise InputError(f"representative inputs differ in rows: {rows} and {len(value)} ({name!r})")
        if not texts and not np.isfinite(value).all():
            raise InputError(f"representative input {name!r} holds NaN or infinity")
        rows = len(value)
        chosen[name] = value.astype(spec.dtype.as_numpy_dtype)
    return chosen
