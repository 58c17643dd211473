"""What the outputs of a model hold, and the losses that fit: from a teacher's answers, and from labels."""

import re
import typing
from collections.abc import Mapping
from typing import Any

from tfopt._keras import keras_api
from tfopt.errors import InputError
from tfopt.numerics.distillation import Kind, soft_binary_cross_entropy, soft_cross_entropy, squared_error
from tfopt.numerics.smoothed_labels import smoothed_cross_entropy
from tfopt.structure.nodes import flat, functional, nodes, struct_of

_KINDS: dict[str, Kind] = {"softmax": "probabilities", "sigmoid": "independent"}
_OF_CLASSES = ("logits", "probabilities")
_NO_WORD = re.compile(r"\W")


def outputs_by_name(model: Any) -> dict[str, Any]:
    """Symbolic outputs by name; the only one is called "logits".

    Raises:
        InputError: outputs within outputs.
    """
    struct = struct_of(functional(model), "outputs")
    tensors = flat(struct)
    if len(tensors) == 1:
        return {"logits": tensors[0]}
    names = sorted(struct) if isinstance(struct, dict) else [str(i) for i in range(len(tensors))]
    if len(names) != len(tensors):
        raise InputError(
            f"model {model.name!r} has outputs within outputs; give it a flat list or dictionary of them"
        )
    return dict(zip(names, tensors, strict=True))


def kinds_of_outputs(model: Any) -> dict[str, Kind]:
    """Output -> its kind: by the last activation, and without one by whether there are classes to choose from."""
    found = {}
    for name, output in outputs_by_name(model).items():
        maker = next(node.operation for node in nodes(model) if id(output) in node.outputs)
        activation = _activation(maker)
        plain: Kind = "values" if output.shape[-1] == 1 or activation not in ("", "linear") else "logits"
        found[name] = _KINDS.get(activation, plain)
    return found


def _activation(maker: Any) -> str:
    """Name of the last function of a layer or operation, "" where it has none."""
    while keras_api.is_model(maker) and getattr(maker, "layers", None):
        maker = maker.layers[-1]
    own = getattr(getattr(maker, "activation", None), "__name__", None)
    symbol = str(getattr(maker, "symbol", "") or "").rpartition(".")[2]
    known = (own, symbol, type(maker).__name__.lower())
    return next((name for name in known if name in _KINDS), own or "")


def title(kind: str, name: str) -> str:
    """Name of a loss; Keras takes few characters in one."""
    return kind if name == "logits" else f"{kind}_{_NO_WORD.sub('_', name)}"


def outputs_of(model: Any) -> dict[str, Any]:
    """The outputs as "logits", or as "logits_" and their names where there are several."""
    return {title("logits", name): tensor for name, tensor in outputs_by_name(model).items()}


def kinds_of(model: Any, given: Mapping[str, Kind] | None) -> dict[str, Kind]:
    """What each output holds, as the caller says or else the model shows.

    Raises:
        InputError: an output that there is not, or one of classes that has one value.
    """
    found = kinds_of_outputs(model)
    for name, kind in (given or {}).items():
        if name not in found or kind not in typing.get_args(Kind):
            raise InputError(
                f"outputs must map {', '.join(found)} to one of {', '.join(typing.get_args(Kind))}, got "
                f"{name!r}: {kind!r}"
            )
        found[name] = kind
    for name, output in outputs_by_name(model).items():
        if output.shape[-1] == 1 and found[name] in _OF_CLASSES:
            raise InputError(
                f"{name} of model {model.name!r} has one value, from which no classes can be learned: say by "
                "outputs={...} that it holds 'values' or is 'independent'"
            )
    return found


def loss_of_answers(name: str, wanted: Kind, have: Kind, temperature: float) -> Any:
    """The loss between an output of the teacher and the student's.

    Raises:
        InputError: they hold different things.
    """
    if wanted in _OF_CLASSES and have in _OF_CLASSES:
        return soft_cross_entropy(temperature, wanted, have)
    if wanted != have:
        raise InputError(f"{name} holds {wanted} in the teacher and {have} in the student; both must agree")
    return squared_error if wanted == "values" else soft_binary_cross_entropy(temperature)


def loss_of_labels(keras: Any, kind: Kind, *, smoothing: float = 0.0) -> Any:
    """The loss between labels and an output; smoothing is that of classes."""
    if kind in _OF_CLASSES and smoothing:
        return smoothed_cross_entropy(smoothing, from_logits=kind == "logits")
    if kind in _OF_CLASSES:
        return keras.losses.SparseCategoricalCrossentropy(from_logits=kind == "logits")
    return keras.losses.MeanSquaredError() if kind == "values" else keras.losses.BinaryCrossentropy()


def labels_by_loss(given: Any, names: list[str]) -> dict[str, Any]:
    """Labels by the name of their loss: of the only output, by name, or in the order of the outputs.

    Raises:
        InputError: other outputs than the model's.
    """
    if len(names) == 1:
        return {title("labels", names[0]): given}
    if isinstance(given, list | tuple) and len(given) == len(names):
        given = dict(zip(names, given, strict=True))
    if not isinstance(given, Mapping) or set(given) != set(names):
        got = ", ".join(map(str, given)) if isinstance(given, Mapping) else "labels of another number of outputs"
        raise InputError(f"labels must be given for {', '.join(names)}, got {got}")
    return {title("labels", name): given[name] for name in names}
