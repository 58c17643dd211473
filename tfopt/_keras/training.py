"""What a training step needs of a compiled model, in either Keras generation."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfopt._keras.keras_api import generation_of, keras_module, tf_variable, walk


def loss(model: Any, x: Any, y: Any, *, answer: Any, weight: Any, training: bool) -> tf.Tensor:
    """The loss that a model is compiled with, for one batch; divided by the number of replicas, as Keras does."""
    if generation_of(model) == "tf_keras":
        found = model.compute_loss(x, y, answer, weight)
    else:
        found = model.compute_loss(x=x, y=y, y_pred=answer, sample_weight=weight, training=training)
    return tf.convert_to_tensor(found)


def count(model: Any, value: tf.Tensor, *, batch: tuple[Any, Any, Any], answer: Any) -> None:
    """Counts a batch, of inputs, labels and weights of rows, and its loss in the metrics of a model."""
    x, y, weight = batch
    if generation_of(model) == "tf_keras":  # which counted the loss when it computed it
        model.compiled_metrics.update_state(y, answer, sample_weight=weight)
        return
    rows = tf.shape(tf.nest.flatten(x)[0])[0]
    next(m for m in model.metrics if m.name == "loss").update_state(value, sample_weight=rows)
    model.compute_metrics(x, y, answer, weight)


def metric_results(model: Any) -> dict[str, tf.Tensor]:
    """Name -> loss and metrics of what was counted since they were reset."""
    found: dict[str, tf.Tensor] = model.get_metrics_result()
    return found


def plus(one: Any, other: Any) -> Any:
    """The sum of two gradients; None is zero."""
    if one is None or other is None:
        return other if one is None else one
    return tf.convert_to_tensor(one) + tf.convert_to_tensor(other)


def statistics(model: Any) -> list[tf.Variable]:
    """Variables that every replica changes by its own rows, and that nothing makes the same again.

    Those of batch norms in Keras 3, which creates them without a word of replicas; in tf_keras who reads them
    reads the mean.
    """
    if generation_of(model) == "tf_keras":
        return []
    keras = keras_module("keras")
    norms = [layer for _, layer in walk(model) if isinstance(layer, keras.layers.BatchNormalization)]
    return [tf_variable(v) for norm in norms for v in (norm.moving_mean, norm.moving_variance)]


def expect_summed_gradients(optimizer: Any) -> None:
    """From now on `apply_summed` is how an optimizer is used.

    Keras 3 has no way to say that gradients are those of all replicas already, and would sum them once more.
    """
    if generation_of(optimizer) == "keras":
        optimizer._all_reduce_sum_gradients = list


def sum_gradients_again(optimizer: Any) -> None:
    """Undoes `expect_summed_gradients`, for who trains the model by other means."""
    vars(optimizer).pop("_all_reduce_sum_gradients", None)


def apply_summed(optimizer: Any, pairs: Sequence[tuple[tf.Tensor, Any]]) -> None:
    """Takes a step by pairs of gradient and variable that are the same on every replica."""
    further = {"skip_gradients_aggregation": True} if generation_of(optimizer) == "tf_keras" else {}
    optimizer.apply_gradients(pairs, **further)
