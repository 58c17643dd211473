"""Accuracy of a classifier on held-out data, from an artifact's own outputs."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from tfopt.errors import DataError
from tfopt.runtime import Predictor


def classify(predictor: Predictor, data: Iterable[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true classes over a dataset of (inputs, labels).

    The artifact's first output holds a score per class.

    Raises:
        DataError: the dataset is empty.
    """
    predicted, true = [], []
    for inputs, labels in data:
        outputs = predictor.predict({name: np.asarray(value) for name, value in inputs.items()})
        predicted.append(next(iter(outputs.values())).argmax(axis=1))
        true.append(np.asarray(labels))
    if not true:
        raise DataError("the held-out data is empty")
    return np.concatenate(predicted), np.concatenate(true)


def accuracy(predicted: np.ndarray, true: np.ndarray) -> float:
    """Share of equal classes."""
    return float((predicted == true).mean())
