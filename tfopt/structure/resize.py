"""Layers of somebody's own in other sizes: by the arguments of their configuration, found by trying.

A custom layer makes its inner layers itself, from arguments such as `hidden=128` whose meaning only it knows. One
is the right one if a layer made with another number, and called on the same inputs, has just the weights wanted.
"""

import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any

from tfopt._keras import keras_api
from tfopt.structure.nodes import Node, is_functional, nodes
from tfopt.structure.one_token import ATTENTION

Shape = tuple[int, ...]
_MOST_SINGLE, _MOST_TOGETHER, _MOST_BLIND = 16, 5, 12
Place = tuple[str, int | None]  # an entry of a configuration, or of a list in it


def custom_layers(model: Any) -> dict[str, Node]:
    """Path of a layer with inner layers of its own making -> its first call in the graph."""
    paths = {id(layer): path for path, layer in keras_api.walk(model)}
    found: dict[str, Node] = {}
    for node in _all_nodes(model):
        layer = node.operation
        if layer is None or not hasattr(layer, "_flatten_layers") or not keras_api.sublayers(layer):
            continue
        if type(layer).__name__ not in ATTENTION and not (keras_api.is_model(layer) and is_functional(layer)):
            found.setdefault(paths[id(layer)], node)
    return found


def _all_nodes(model: Any) -> Iterator[Node]:
    for node in nodes(model):
        yield node
        if node.operation is not None and keras_api.is_model(node.operation) and is_functional(node.operation):
            yield from _all_nodes(node.operation)


# What was made so far to see its weights: by class and configuration, their shapes, or None if nothing came of it.
Made = dict[str, "list[Shape] | None"]


def remembered(made: Made | None, key: Any, shapes_of: Callable[[], list[Shape] | None]) -> list[Shape] | None:
    """The shapes that `made` has under a key; else those that are found now, which it keeps."""
    if made is None:
        return shapes_of()
    if repr(key) not in made:
        made[repr(key)] = shapes_of()
    return made[repr(key)]


def resized_config(node: Node, wanted: list[Shape], made: Made | None = None) -> dict[str, Any] | None:
    """The configuration with which the layer of a node has weights of other shapes, or None if none does.

    Args:
        node: a call of the layer; it is repeated on new inputs of the same shapes.
        wanted: shapes of its weights, in the order of `keras_api.weights`.
        made: what is kept from one question about a model to the next.
    """
    layer = node.operation
    have = [tuple(map(int, w.variable.shape)) for w in keras_api.weights(layer)]
    config = config_of_layer(layer)
    if config is None:
        return None

    def shapes_of(tried: dict[str, Any]) -> list[Shape] | None:
        plain = {key: value for key, value in tried.items() if key != "name"}
        key = (type(layer).__name__, plain, [tuple(t.shape) for t in node.read])
        return remembered(made, key, lambda: _shapes(node, tried))

    return fitting_changes(config, have, wanted, shapes_of=shapes_of)


def config_of_layer(layer: Any) -> dict[str, Any] | None:
    """The configuration of a layer of somebody's own, None where it gives none and so cannot be made anew."""
    try:
        found: dict[str, Any] = layer.get_config()
    except Exception:  # noqa: BLE001 - whatever it raises
        return None
    return found


def fitting_changes(
    config: Mapping[str, Any],
    have: list[Shape],
    wanted: list[Shape],
    shapes_of: Callable[[dict[str, Any]], list[Shape] | None],
) -> dict[str, Any] | None:
    """A configuration with other numbers that gives the weights wanted; None where none is found.

    Every number that may be meant is changed by itself; as sizes are products of numbers, what those changes did
    tells which of them belong together. What is returned was made and gave the shapes wanted.

    Args:
        config: the configuration.
        have, wanted: shapes of the weights, with and after it.
        shapes_of: configuration -> shapes of the weights of what is made from it, or None where nothing can be.
    """
    sizes = {(a, b) for old, new in zip(have, wanted, strict=True) for a, b in zip(old, new, strict=True) if a != b}
    effects: dict[tuple[Place, int], list[list[Fraction]] | None] = {}
    for place, value in _single_changes(config, sizes):
        tried = changed(config, {place: value})
        shapes = shapes_of(tried)
        if shapes == wanted:
            return tried
        effects[place, value] = _ratios(have, shapes)
    blind = 0
    for changes in _combined(list(effects)):
        known = [effect for one in changes if (effect := effects[one]) is not None]
        if len(known) < len(changes):
            blind += 1
            if len(changes) > 2 or blind > _MOST_BLIND:
                continue
        elif list[Any](_multiplied(have, known)) != wanted:
            continue
        tried = changed(config, dict(changes))
        if shapes_of(tried) == wanted:
            return tried
    return None


def _single_changes(config: Mapping[str, Any], sizes: set[tuple[int, int]]) -> list[tuple[Place, int]]:
    """Numbers that are sizes which change come first, then those that divide one, or are divided by one."""
    equal, others = list[tuple[Place, int]](), list[tuple[Place, int]]()
    for place, value in numbers(config):
        for old, new in sorted(sizes):
            if value == old:
                equal.append((place, new))
            elif (value % old == 0 or old % value == 0) and (new * value) % old == 0:
                others.append((place, new * value // old))
    return list(dict.fromkeys(equal + others))[:_MOST_SINGLE]


def _combined(singles: list[tuple[Place, int]]) -> Iterator[tuple[tuple[Place, int], ...]]:
    for count in range(2, min(len(singles), _MOST_TOGETHER) + 1):
        for some in itertools.combinations(singles, count):
            if len({place for place, _ in some}) == count:
                yield some


def _ratios(have: list[Shape], shapes: list[Shape] | None) -> list[list[Fraction]] | None:
    """By how much each size became larger; None where the weights are others."""
    if shapes is None or list(map(len, shapes)) != list(map(len, have)) or any(0 in s for s in have):
        return None
    return [[Fraction(b, a) for a, b in zip(old, new, strict=True)] for old, new in zip(have, shapes, strict=True)]


def _multiplied(have: list[Shape], effects: list[list[list[Fraction]]]) -> list[tuple[Fraction, ...]]:
    return [
        tuple(math.prod((effect[i][j] for effect in effects), start=Fraction(size)) for j, size in enumerate(shape))
        for i, shape in enumerate(have)
    ]


def numbers(config: Mapping[str, Any]) -> Iterator[tuple[Place, int]]:
    """The positive whole numbers of a configuration, and where they stand."""
    for key, value in config.items():
        if type(value) is int and value > 0:
            yield (key, None), value
        elif isinstance(value, list | tuple):
            yield from (((key, i), one) for i, one in enumerate(value) if type(one) is int and one > 0)


def changed(config: Mapping[str, Any], changes: Mapping[Place, int]) -> dict[str, Any]:
    """A configuration with other numbers."""
    made = dict(config)
    for (key, index), value in changes.items():
        if index is None:
            made[key] = value
        else:
            made[key] = type(made[key])([*made[key][:index], value, *made[key][index + 1 :]])
    return made


def _shapes(node: Node, config: dict[str, Any]) -> list[Shape] | None:
    """Shapes of the weights of a layer made from a configuration; None where it cannot be made or called."""
    layers = keras_api.keras_module(keras_api.generation_of(node.operation)).layers
    try:
        inputs = {
            i: layers.Input(tuple(t.shape)[1:], t.shape[0], dtype=_dtype(t))
            for i, t in zip(node.inputs, node.read, strict=True)
        }
        arguments, keywords = node.fill(inputs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras tells what does not fit; that is what is tried out
            layer = type(node.operation).from_config(config)
            layer(*arguments, **keywords)
    except Exception:  # noqa: BLE001 - whatever somebody's own layer raises for sizes that it was not meant for
        return None
    return [tuple(map(int, w.variable.shape)) for w in keras_api.weights(layer)]


def _dtype(tensor: Any) -> str:
    return tensor.dtype if isinstance(tensor.dtype, str) else tensor.dtype.name
