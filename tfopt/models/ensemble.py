"""Several models as one: their predictions averaged, or their weights."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from tfopt._keras import keras_api
from tfopt._keras.copying import copy_of
from tfopt.errors import InputError

By = Literal["predictions", "weights"]


def ensemble(models: Sequence[Any], *, by: By = "predictions") -> Any:
    """One Keras model of several that take and give the same.

    Averaged predictions are nearly always better than any of the models, at the cost of all of them; as the teacher
    of a `Distiller` they cost nothing in the end. Averaged weights cost what one model does, and help where the
    models were trained from the same start (Wortsman et al., "Model soups", https://arxiv.org/abs/2203.05482).

    Args:
        models: two or more functional models of one generation, with the same inputs and outputs; by weights, with
            the same weights.
        by: "predictions", the mean of every output, of logits too; or "weights".

    Raises:
        InputError: models that do not fit together.
    """
    if by not in ("predictions", "weights"):
        raise InputError(f"by must be 'predictions' or 'weights', got {by!r}")
    models = [keras_api.check_model(model) for model in models]
    if len(models) < 2:
        raise InputError(f"an ensemble is made of two models or more, got {len(models)}")
    if len({keras_api.generation_of(model) for model in models}) > 1:
        raise InputError("the models of an ensemble must be of one Keras generation")
    return _of_predictions(models) if by == "predictions" else _of_weights(models)


def _of_predictions(models: Sequence[Any]) -> Any:
    """A model that runs all of them."""
    facts = [_inputs(model) for model in models]
    keras = keras_api.keras_module(keras_api.generation_of(models[0]))
    first = models[0]
    other = next((i for i, found in enumerate(facts) if found != facts[0]), None)
    if other is not None:
        raise InputError(
            f"models 0 and {other} of the ensemble take different inputs: {facts[0]} and {facts[other]}"
        )
    names = [f"member_{i}" for i in range(len(models))]
    members = [_named(model, name) for model, name in zip(models, names, strict=True)]
    inputs = first.input
    return keras.Model(inputs, _mean(keras, [member(inputs) for member in members]), name=f"{first.name}_ensemble")


def _named(model: Any, name: str) -> Any:
    """A copy with a name of its own, since layers of one model must have different ones."""
    made = _copied(model)
    if keras_api.generation_of(made) == "keras":
        made.name = name
    else:
        made._name = name
    made.trainable = False
    return made


def _copied(model: Any) -> Any:
    made = copy_of(model)
    if made is None:
        raise InputError(f"model {model.name!r} cannot be copied: its layers need more than their configurations")
    return made


def _inputs(model: Any) -> dict[str, tuple[Any, str]]:
    """Name -> shape and type of every input."""
    return {
        str(tensor.name).partition(":")[0]: (tuple(tensor.shape), str(getattr(tensor.dtype, "name", tensor.dtype)))
        for tensor in model.inputs
    }


def _mean(keras: Any, outputs: Sequence[Any]) -> Any:
    """The mean of outputs of the same structure."""
    if isinstance(outputs[0], dict):
        if any(set(found) != set(outputs[0]) for found in outputs):
            raise InputError(f"the models of an ensemble give different outputs: {[sorted(o) for o in outputs]}")
        return {name: _mean(keras, [found[name] for found in outputs]) for name in outputs[0]}
    if isinstance(outputs[0], list | tuple):
        return [_mean(keras, list(some)) for some in zip(*outputs, strict=True)]
    shapes = [tuple(found.shape) for found in outputs]
    if len(set(shapes)) > 1:
        raise InputError(f"the models of an ensemble give outputs of different shapes: {shapes}")
    return keras.layers.Average()(list(outputs))


def _of_weights(models: Sequence[Any]) -> Any:
    """The first model with the mean of all weights."""
    all_weights = [{w.path: keras_api.to_numpy(w.variable) for w in keras_api.weights(model)} for model in models]
    shapes = [{path: value.shape for path, value in found.items()} for found in all_weights]
    for number, found in enumerate(shapes[1:], 1):
        different = sorted(path for path in {*found, *shapes[0]} if found.get(path) != shapes[0].get(path))
        if different:
            raise InputError(f"models 0 and {number} have different weights, {different[0]!r} for one")
    made = copy_of(models[0])
    if made is None:
        raise InputError(
            f"model {models[0].name!r} cannot be copied: its layers need more than their configurations"
        )
    for weight in keras_api.weights(made):
        values = [found[weight.path] for found in all_weights]
        if np.issubdtype(values[0].dtype, np.floating) or values[0].dtype.name == "bfloat16":
            weight.variable.assign(
                np.mean([value.astype(np.float64) for value in values], 0).astype(values[0].dtype)
            )
    return made
