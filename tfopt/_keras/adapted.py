"""What `adapt` taught layers of preprocessing: it lies beside their weights and in no configuration."""

from typing import Any

import numpy as np

from tfopt._keras import keras_api
from tfopt._keras.lookups import lookups


def carry_adapted(model: Any, made: Any) -> None:
    """Gives the layers of a copy, whose weights it has already, what `adapt` taught those of the model."""
    for old, new in zip(lookups(model), lookups(made), strict=True):
        _carry_vocabulary(old, new)
    for old, new in zip(_layers(model, "bin_boundaries"), _layers(made, "bin_boundaries"), strict=True):
        seen = getattr(old, "summary", None)
        if isinstance(seen, np.ndarray):
            new.summary = seen.copy()
        elif seen is not None:
            new.summary.assign(seen)
        new.bin_boundaries = [float(edge) for edge in old.bin_boundaries or ()] or None
    follow_weights(made)


def follow_weights(model: Any) -> None:
    """Lets layers compute with the weights and the precision that they have now.

    `Normalization` keeps tensors that it made of its weights when they were last adapted or loaded.
    """
    for layer in _layers(model, "adapt_mean"):
        layer.finalize_state()


def _layers(model: Any, mark: str) -> list[Any]:
    within = [model, *(layer for _, layer in keras_api.walk(model))]
    return [layer for layer in within if hasattr(layer, mark)]


def _carry_vocabulary(old: Any, new: Any) -> None:
    known = old.get_vocabulary(include_special_tokens=False)
    if getattr(old, "output_mode", None) == "tf_idf" or getattr(old, "_output_mode", None) == "tf_idf":
        table = getattr(old, "_lookup_layer", old)
        first = len(old.get_vocabulary()) - len(known)  # a mean stands for words that it does not know
        new.set_vocabulary(known, idf_weights=table.idf_weights.numpy()[first : first + len(known)])
    elif known != new.get_vocabulary(include_special_tokens=False):
        new.set_vocabulary(known)
