"""Accuracy of a classifier on held-out data, from an artifact's own outputs."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from tfopt.errors import DataError, InputError
from tfopt.numerics.metrics import Scored
from tfopt.runtime import Predictor
from tfopt.runtime.shared import SharedPredictor


def classify(predictor: Predictor | SharedPredictor, data: Iterable[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true classes over a dataset of (inputs, labels).

    The scores of the classes are the artifact's only output, or the one named "logits".

    Raises:
        DataError: the dataset is empty or has no labels.
        InputError: several outputs and none of them named "logits".
    """
    predicted, true = [], []
    for _, labels, outputs in predictor.answered(map(_labelled, data)):
        if len(outputs) > 1 and "logits" not in outputs:
            raise InputError(f"which output holds the scores of the classes? It has {', '.join(outputs)}")
        scores = outputs["logits"] if len(outputs) > 1 else next(iter(outputs.values()))
        predicted.append(scores.argmax(axis=1))
        true.append(labels)
    if not true:
        raise DataError("the held-out data is empty")
    return np.concatenate(predicted), np.concatenate(true)


def _labelled(batch: Any) -> tuple[dict[str, np.ndarray], np.ndarray]:
    if not isinstance(batch, tuple):
        raise DataError("the held-out data has no labels, so there is no accuracy to compute")
    inputs, labels = batch
    return {name: np.asarray(value) for name, value in inputs.items()}, np.asarray(labels)


def accuracy_on(data: Iterable[Any], predictor: Predictor | SharedPredictor) -> Scored:
    """The share of right classes, and the classes; arguments as for `classify`."""
    predicted, true = classify(predictor, data)
    return Scored({"accuracy": accuracy(predicted, true)}, predicted.tolist(), true.tolist())


def accuracy(predicted: np.ndarray, true: np.ndarray) -> float:
    """Share of equal classes."""
    return float((predicted == true).mean())
