"""A loaded artifact whose answers to many batches are shared out among processes that load it as well."""

import contextlib
import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from tfopt._base.spread import Workers
from tfopt.runtime.predictor import Predictor


class SharedPredictor:
    """Answers as the predictor does; see `Predictor.predict` and `Predictor.answered`.

    Args:
        predictor: loaded here; one batch alone is its own.
        workers: who answers several.
    """

    def __init__(self, predictor: Predictor, workers: Workers) -> None:
        self._workers = workers
        self._load = functools.partial(
            Predictor.load, predictor.path.resolve(), threads=workers.threads(None), trust=predictor.trust,
            imports=predictor.imports,
        )  # fmt: skip
        self.predict = predictor.predict

    def answered(
        self, pairs: Iterable[tuple[Mapping[str, Any], Any]]
    ) -> Iterator[tuple[Mapping[str, Any], Any, dict[str, np.ndarray]]]:
        kept, asked = itertools.tee(pairs)
        answers = self._workers.each(_predicted, ((inputs,) for inputs, _ in asked), setup=self._load)
        with contextlib.closing(answers) as outputs:
            for (inputs, other), found in zip(kept, outputs, strict=True):
                yield inputs, other, found


def _predicted(predictor: Predictor, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return predictor.predict(inputs)
