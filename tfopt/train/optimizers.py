"""Optimizers by name, as both generations of Keras have them."""

from typing import Any

from tfopt._keras import keras_api
from tfopt.errors import InputError
from tfopt.schedules import OptimizerName

_CLASSES = {
    "adamw": "AdamW",
    "adafactor": "Adafactor",
    "sgd": "SGD",
    "lion": "Lion",
    "lamb": "Lamb",
    "muon": "Muon",
}
_SETTINGS: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.9, "nesterov": True},
    "adafactor": {"relative_step": False},  # else it bounds the rate by a schedule of its own
}


def make_optimizer(model: Any, name: OptimizerName, rate: Any, *, weight_decay: float) -> Any:
    """An optimizer for a model; norms and biases are not decayed.

    Args:
        model: of either generation.
        name: "adamw" (https://arxiv.org/abs/1711.05101), "adafactor" (https://arxiv.org/abs/1804.04235), "sgd" with
            Nesterov's momentum, "lion" (https://arxiv.org/abs/2302.06675), and in Keras 3 "lamb"
            (https://arxiv.org/abs/1904.00962) and "muon" (https://kellerjordan.github.io/posts/muon).
        rate: a number or a schedule of Keras.
        weight_decay: decoupled decay of matrices.

    Raises:
        InputError: an optimizer that this generation has not.
    """
    keras = keras_api.keras_module(keras_api.generation_of(model))
    kind = getattr(keras.optimizers, _CLASSES.get(name, name.capitalize()), None)
    if kind is None:
        raise InputError(
            f"optimizer {name!r} is not in {keras.__name__}: make the model with Keras 3, or take 'adamw'"
        )
    settings = {"adam_weight_decay": weight_decay} if name == "muon" else _SETTINGS.get(name, {})
    optimizer = kind(rate, weight_decay=weight_decay, **settings)
    if weight_decay:
        optimizer.exclude_from_weight_decay(
            var_list=[w.variable for w in keras_api.weights(model) if len(w.variable.shape) < 2]
        )
    return optimizer
