"""Layers that look up texts or numbers in a vocabulary."""

from typing import Any

from tfopt._keras import keras_api

LOOKUPS = ("TextVectorization", "StringLookup", "IntegerLookup")


def lookups(model: Any) -> list[Any]:
    """The layers that look up texts or numbers in a vocabulary, nested ones too, without what they are made of."""
    within = [model, *(layer for _, layer in keras_api.walk(model))]
    found = [layer for layer in within if type(layer).__name__ in LOOKUPS]
    inside = {id(inner) for layer in found for _, inner in keras_api.walk(layer) if inner is not layer}
    return [layer for layer in found if id(layer) not in inside]


def tables(model: Any) -> list[Any]:
    """TensorFlow's tables behind them."""
    found = (getattr(layer, "lookup_table", None) for _, layer in keras_api.walk(model))
    return [table for table in found if table is not None]


def words_of(layer: Any) -> tuple[str, ...]:
    """Texts that such a layer knows, without those that stand for others."""
    return tuple(str(word) for word in layer.get_vocabulary(include_special_tokens=False))
