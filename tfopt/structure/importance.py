"""How much each unit of a model matters."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt._keras import keras_api
from tfopt.errors import InputError
from tfopt.structure.groups import Group, Structure, unit_view


def importance(
    model: Any, structure: Structure, data: Iterable[Any] | None = None, loss: Any = None
) -> dict[str, np.ndarray]:
    """How much each unit matters: name of a group -> one number per unit.

    Args:
        model: the model.
        structure: its groups.
        data: batches of (inputs, labels); first-order importance with it, magnitudes without.
        loss: as for `shrink`.
    """
    weights = keras_api.weights(model)
    if data is None:
        values = {w.path: keras_api.to_numpy(w.variable) for w in weights}
        return {g.name: magnitude(g, values) for g in structure.groups}
    measure = loss or _cross_entropy
    # A gate on a unit's output has as its gradient the sum of weight times gradient over what reads the unit.
    scores = {g.name: np.zeros(g.units) for g in structure.groups}
    consumed = [s.path for g in structure.groups for s in g.slices if s.consumed]
    watched = [w for w in weights if w.path in consumed]
    variables = [keras_api.tf_variable(w.variable) for w in watched]

    @tf.function(reduce_retracing=True)
    def gradients(inputs: Any, labels: Any) -> Any:
        with tf.GradientTape() as tape:
            value = measure(labels, model(inputs, training=False))
        found = tape.gradient(value, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return [tf.convert_to_tensor(g) for g in found]

    batches = 0
    for batch in data:
        if not isinstance(batch, tuple) or len(batch) < 2:
            raise InputError("data for importance must give (inputs, labels)")
        found = {w.path: g.numpy() for w, g in zip(watched, gradients(batch[0], batch[1]), strict=True)}
        values = {w.path: keras_api.to_numpy(w.variable) for w in watched}
        for group in structure.groups:
            gates = sum(
                unit_view(values[s.path] * found[s.path], s, group.units).sum(1) for s in group.slices if s.consumed
            )
            scores[group.name] += np.abs(gates)
        batches += 1
    if not batches:
        raise InputError("data for importance holds no batches")
    return scores


def _cross_entropy(labels: Any, outputs: Any) -> Any:
    flat = tf.nest.flatten(outputs)
    if len(flat) != 1 or len(flat[0].shape) != len(labels.shape) + 1:
        raise InputError(
            f"cross-entropy needs one output of logits with an axis more than the labels, got {len(flat)} outputs; "
            "give loss=(labels, outputs) -> scalar"
        )
    (logits,) = flat
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(tf.cast(labels, tf.int32), logits))


def magnitude(group: Group, values: Mapping[str, np.ndarray]) -> np.ndarray:
    """The norm of each unit's matrices."""
    total = np.zeros(group.units)
    for place in group.slices:
        if values[place.path].ndim > 1:
            total += (unit_view(values[place.path].astype(np.float64), place, group.units) ** 2).sum(1)
    return np.sqrt(total)
