"""`finish`: ends whatever techniques work on a model."""

from typing import Any

from tfopt._keras import keras_api
from tfopt.compress.techniques import TECHNIQUES
from tfopt.errors import InputError


def finish(model: Any) -> Any:
    """Ends everything that is attached to a model, in the right order, and gives a plain Keras model.

    Quantization puts the weights on their grids, adapters are added to their matrices, a distiller gives its
    student, and units that structured pruning left at zero are cut out, which makes a new and smaller model.
    Zeros and shared values of pruning and clustering are there already and stay.

    Args:
        model: what was trained: a model of either generation, or a `Distiller`.

    Returns:
        The same model object, or the student of a distiller, or a smaller model.

    Raises:
        InputError: nothing is attached, or a weight became NaN while it was trained; the model is then as it was.

    >>> import tf_keras, tfopt
    >>> model = tf_keras.Sequential([tf_keras.layers.Input((4,)), tf_keras.layers.Dense(8)])
    >>> tfopt.finish(tfopt.quantize_aware(model, weight_bits=4)) is model
    True
    """
    model = getattr(model, "model", model) if not keras_api.is_model(model) else model
    keras_api.check_model(model)
    if not any(technique.load().is_attached(model) for technique in TECHNIQUES):
        raise InputError(
            f"model {model.name!r} is plain already, there is nothing to finish: finish() ends what "
            "quantize_aware, lora.prepare, a Distiller, or a callback of tfopt.callbacks attached to the same "
            "model object"
        )
    return finish_all(model)


def finish_all(model: Any) -> Any:
    """Ends everything that is attached, if anything is."""
    for technique in reversed(TECHNIQUES):
        module = technique.load()
        if module.is_attached(model):
            model = module.finish(model)
    return model
