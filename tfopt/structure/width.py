"""Hidden width: norms compute statistics over it, so a model without some of it has other statistics.

What is compared with the smaller model is therefore the model with those units at zero and with norms over the
units that stay.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt._keras import keras_api
from tfopt._keras.layer_calls import Replaced, original_call
from tfopt.errors import InputError
from tfopt.structure.axes import leaves
from tfopt.structure.groups import Group, Structure

_SUMS = ("Sum",)  # units at zero add nothing
_NORMS = ("LayerNormalization", "RMSNormalization")


def narrow_norms(model: Any, structure: Structure, group: Group, kept: np.ndarray, made: Any) -> Replaced:
    """Lets every norm over a group's units compute over those that stay, until it is given back.

    Args:
        model: the model, whose layers are replaced.
        structure: of the model.
        group: units of kind "width".
        kept: those that stay.
        made: the smaller model; its norms are what is computed.

    Raises:
        InputError: an operation over the units that has no such meaning.
    """
    replaced = Replaced()
    smaller = _counterparts(model, made)
    try:
        for owner, kind in dict.fromkeys(_over(structure, group)):
            name = type(owner).__name__
            if id(owner) in smaller and (name in _NORMS or _scales_only(owner, group.units)):
                replaced.put(owner, "call", _within(smaller[id(owner)], kept, group.units))
            elif kind == "Mean" and not getattr(owner, "weights", ()):
                replaced.put(owner, "call", _rescaled(original_call(owner), group.units / len(kept)))
            else:
                raise InputError(
                    f"{getattr(owner, 'name', owner)!r} of class {name} computes {kind} over the hidden width, "
                    "which means something else with fewer units"
                )
    except BaseException:
        replaced.give_back()
        raise
    return replaced


def _over(structure: Structure, group: Group) -> Iterator[tuple[Any, str]]:
    """Nodes of the model that compute something over the units, and the kind of operation."""
    root = group.factor.root
    for op in structure.trace.operations:
        if op.type in ("Mean", "Sum", "Max", "Min", "Prod"):
            over = tf.get_static_value(op.inputs[1])
            axes = structure.axes[op.inputs[0].name]
            reduced = [axes[int(i)] for i in np.atleast_1d(over)]
        elif op.type == "FusedBatchNormV3" and op.get_attr("is_training"):  # how tf_keras computes layer norms
            axes = structure.axes[op.inputs[0].name]
            channel = 1 if op.get_attr("data_format") == b"NCHW" else len(axes) - 1
            reduced = [axis for i, axis in enumerate(axes) if i != channel]
        else:
            continue
        if op.type not in _SUMS and any(leaf is root for leaf in leaves(*reduced)):
            yield structure.trace.inner.get(op.name, structure.trace.owner[op.name]), op.type


def _counterparts(model: Any, made: Any) -> dict[int, Any]:
    """Identity of a layer -> the same one in the smaller model; inner layers may have other names there."""
    ours, theirs = dict(keras_api.walk(model)), dict(keras_api.walk(made))
    if [type(layer) for layer in ours.values()] == [type(layer) for layer in theirs.values()]:
        return {id(a): b for a, b in zip(ours.values(), theirs.values(), strict=True)}
    return {id(layer): theirs[path] for path, layer in ours.items() if path in theirs}


def _scales_only(layer: Any, units: int) -> bool:
    """Whether a layer of somebody's own is a norm: all that it has is a value for each unit."""
    shapes = [tuple(map(int, w.variable.shape)) for w in keras_api.weights(layer)]
    return bool(shapes) and all(shape == (units,) for shape in shapes) and not keras_api.sublayers(layer)


def _within(norm: Any, kept: np.ndarray, units: int) -> Callable[..., Any]:
    """A norm over the units that stay; the others give zero."""
    places = np.eye(units, dtype=np.float32)[kept]

    def call(x: Any, *arguments: Any, **keywords: Any) -> Any:
        found = norm(tf.gather(x, kept, axis=-1))
        return tf.matmul(found, tf.broadcast_to(places, [*found.shape[:-2], *places.shape]))

    return call


def _rescaled(original: Callable[..., Any], factor: float) -> Callable[..., Any]:
    """A mean over the units that stay, where the others are zero."""
    return lambda *arguments, **keywords: original(*arguments, **keywords) * factor
