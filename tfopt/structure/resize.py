"""Layers of somebody's own in other sizes: by the arguments of their configuration, found by trying.

A custom layer makes its inner layers itself, from arguments such as `hidden=128` whose meaning only it knows. One
is the right one if a layer made with another number, and called on the same inputs, has just the weights wanted.
"""

import itertools
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from tfopt._keras import keras_api
from tfopt.structure.nodes import Node, is_functional, nodes
from tfopt.structure.one_token import ATTENTION

Shape = tuple[int, ...]
_MOST_TRIALS = 64
_Place = tuple[str, int | None]  # an entry of a configuration, or of a list in it


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


def resized_config(node: Node, wanted: list[Shape]) -> dict[str, Any] | None:
    """The configuration with which the layer of a node has weights of other shapes, or None if none does.

    Args:
        node: a call of the layer; it is repeated on new inputs of the same shapes.
        wanted: shapes of its weights, in the order of `keras_api.weights`.
    """
    layer = node.operation
    have = [tuple(map(int, w.variable.shape)) for w in keras_api.weights(layer)]
    sizes = {(a, b) for old, new in zip(have, wanted, strict=True) for a, b in zip(old, new, strict=True) if a != b}
    config = config_of_layer(layer)
    if config is None:
        return None
    for changes in _changes(config, sizes):
        changed = _with(config, changes)
        if _shapes(node, changed) == wanted:
            return changed
    return None


def config_of_layer(layer: Any) -> dict[str, Any] | None:
    """The configuration of a layer of somebody's own, None where it gives none and so cannot be made anew."""
    try:
        found: dict[str, Any] = layer.get_config()
    except Exception:  # noqa: BLE001 - whatever it raises
        return None
    return found


def _changes(config: Mapping[str, Any], sizes: set[tuple[int, int]]) -> list[dict[_Place, int]]:
    """What to try: other numbers where one fits a size that changes; few changes first."""
    options: dict[_Place, set[int]] = {}
    for place, value in _numbers(config):
        fitting = {new * value // old for old, new in sizes if value % old == 0 or (new * value) % old == 0}
        if fitting - {value, 0}:
            options[place] = fitting - {value, 0}
    found: list[dict[_Place, int]] = []
    for count in range(1, len(options) + 1):
        for places in itertools.combinations(options, count):
            for values in itertools.product(*(sorted(options[p]) for p in places)):
                found.append(dict(zip(places, values, strict=True)))
                if len(found) == _MOST_TRIALS:
                    return found
    return found


def _numbers(config: Mapping[str, Any]) -> Iterator[tuple[_Place, int]]:
    for key, value in config.items():
        if type(value) is int and value > 0:
            yield (key, None), value
        elif isinstance(value, list | tuple):
            yield from (((key, i), one) for i, one in enumerate(value) if type(one) is int and one > 0)


def _with(config: Mapping[str, Any], changes: Mapping[_Place, int]) -> dict[str, Any]:
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
