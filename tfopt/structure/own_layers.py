"""Models of a class of somebody's own with fewer layers: by the number of layers in its configuration."""

import dataclasses
import re
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfopt._keras import keras_api
from tfopt._keras.adapted import carry_adapted
from tfopt._keras.input_facts import size_to_try
from tfopt._keras.keras_io import call, inputs_of
from tfopt._keras.layer_calls import Replaced
from tfopt.errors import InputError
from tfopt.structure.masked import check_same, samples_of
from tfopt.structure.own_class import config_to_change, from_config, own_config, own_parts, with_part
from tfopt.structure.resize import Place, Shape, changed, config_of_layer, numbers

_NUMBERED = re.compile(r"(.*_)(\d+)")
_Layers = dict[int, list[Shape]]  # number -> shapes of weights


@dataclasses.dataclass(frozen=True)
class Stack:
    """The layers that a number of a configuration makes.

    Attributes:
        place: the number in it.
        count: what it is.
        first: number in the name of the first layer, by the path before it; an encoder and a decoder have two.
    """

    place: Place
    count: int
    first: dict[str, int]


def stack_of(model: Any) -> Stack | None:
    """The layers of a model by its own configuration: one fewer leaves the weights of all but the last."""
    if own_config(model) is None:
        return None
    config, old = config_to_change(model), _by_layer(model)
    for place, value in numbers(config):
        made = from_config(model, changed(config, {place: value - 1}), hollow=True) if value > 1 else None
        if made is None:
            continue
        new = _by_layer(made)
        ended = {
            stem: min(layers) for stem, layers in old.items() if stem and _lost_last(layers, new.get(stem), value)
        }
        if ended and _beside(old, ended) == _beside(new, ended):
            return Stack(place, value, ended)
    return None


def _lost_last(layers: _Layers, fewer: _Layers | None, count: int) -> bool:
    """Whether of so many layers just the last is gone."""
    numbered = list(range(min(layers), min(layers) + count))
    return sorted(layers) == numbered and fewer == {n: layers[n] for n in numbered[:-1]}


def _beside(found: Mapping[str, _Layers], ended: Mapping[str, int]) -> list[Shape]:
    """Shapes of the weights in no layer of these; automatic names in them differ from model to model."""
    return [
        shape for stem, layers in found.items() if stem not in ended for some in layers.values() for shape in some
    ]


def without_own_layers(model: Any, stack: Stack, gone: Sequence[int]) -> Any | None:
    """A new model of the same class without some layers, with the weights of those that stay.

    None where a layer would be another one in its new place, such as one of a window and of all tokens in turn.

    Raises:
        InputError: layers that cannot be left out.
        VerificationError: it is not what this one computes when those layers hand on what they get.
    """
    stay = [i for i in range(stack.count) if i not in set(gone)]
    made = from_config(model, changed(config_to_change(model), {stack.place: len(stay)}))
    if made is None:
        raise InputError(f"class {type(model).__name__} cannot be made with {len(stay)} layers")
    places = {
        (stem, first + new): (stem, first + old)
        for stem, first in stack.first.items()
        for new, old in enumerate(stay)
    }
    if not _are_alike(model, made, places):
        return None
    sources, targets = _variables(model, stack), _variables(made, stack)
    for place, variables in targets.items():
        for variable, source in zip(variables, sources[places.get(place, place)], strict=True):
            variable.assign(keras_api.to_numpy(source))
    carry_adapted(model, made)
    _check(model, stack, gone, made=made)
    return made


def _variables(model: Any, stack: Stack) -> dict[tuple[str, int], list[Any]]:
    """Layer, ("", 0) for what is in none -> its weights."""
    found: dict[tuple[str, int], list[Any]] = {}
    for weight in keras_api.weights(model):
        found.setdefault(_layer_of(weight.path, stack.first), []).append(weight.variable)
    return found


def _are_alike(model: Any, made: Any, places: Mapping[tuple[str, int], tuple[str, int]]) -> bool:
    """Whether every layer that stays has the shapes and the configuration of the one in its new place."""
    ours, theirs = dict(keras_api.walk(model)), dict(keras_api.walk(made))
    for (stem, new), (_, old) in places.items():
        before, after = ours[f"{stem}{old}"], theirs[f"{stem}{new}"]
        shapes = [[tuple(w.variable.shape) for w in keras_api.weights(layer)] for layer in (before, after)]
        settings = [config_of_layer(layer) for layer in (before, after)]
        known = [repr({**config, "name": ""}) for config in settings if config is not None]  # some fail to give one
        if shapes[0] != shapes[1] or len(set(known)) > 1:
            return False
    return True


def around_part(model: Any, gone_of: Callable[[int], Sequence[int]]) -> Any | None:
    """A new model of the same class around a part with fewer layers; None where none has layers."""
    for key, part in own_parts(model).items():
        stack = stack_of(part)
        if stack is not None:
            smaller = without_own_layers(part, stack, gone_of(stack.count))
            made = None if smaller is None else with_part(model, key, smaller)
            if made is None:
                raise InputError(f"class {type(model).__name__} cannot be made around a smaller {key}")
            return made
    return None


def _layer_of(path: str, stems: Container[str] | None = None) -> tuple[str, int]:
    """The path up to a number in the name of a layer, and the number; ("", 0) where there is none."""
    parts = path.split("/")
    for depth, part in enumerate(parts[:-1]):
        match = _NUMBERED.fullmatch(part)
        stem = "/".join([*parts[:depth], match[1]]) if match else ""
        if match and (stems is None or stem in stems):
            return stem, int(match[2])
    return "", 0


def _by_layer(model: Any) -> dict[str, _Layers]:
    """Path up to a number -> number -> shapes of the weights in that layer."""
    found: dict[str, _Layers] = {}
    for weight in keras_api.weights(model):
        stem, number = _layer_of(weight.path)
        found.setdefault(stem, {}).setdefault(number, []).append(tuple(map(int, weight.variable.shape)))
    return found


def _check(model: Any, stack: Stack, gone: Sequence[int], made: Any) -> None:
    inputs = inputs_of(model)
    samples = samples_of(model, size_to_try(model, inputs))
    names = {f"{stem}{first + number}" for stem, first in stack.first.items() for number in gone}
    replaced = Replaced()
    try:
        for path, layer in keras_api.walk(model):
            if path in names:
                replaced.put(layer, "call", _hands_on)
        expected = [value.numpy() for value in call(model, inputs, samples).values()]
    except (ValueError, TypeError, tf.errors.InvalidArgumentError) as error:  # those that give more than they get
        raise InputError(
            f"layers {list(gone)} of class {type(model).__name__} cannot be left out, which hand on more than one "
            f"tensor: {str(error).strip().splitlines()[0]}"
        ) from error
    finally:
        replaced.give_back()
    # An output may be called after the last layer, which has another number now.
    for (name, value), wanted in zip(call(made, inputs, samples).items(), expected, strict=True):
        check_same(name, value.numpy(), wanted)


def _hands_on(*arguments: Any, **keywords: Any) -> Any:
    """The first of what a layer is called with."""
    return arguments[0] if arguments else next(iter(keywords.values()))
