"""Times artifacts in turns in one process, so that whatever disturbs the machine disturbs all of them."""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tfopt._base.remaining import told_now_and_then
from tfopt.measure.results import Latency
from tfopt.runtime import Predictor

_WARM_UP = 5


class Timing(NamedTuple):
    """Timed calls of one artifact, in seconds, one per round."""

    seconds: np.ndarray

    @property
    def latency(self) -> Latency:
        p50, p95, p99 = np.percentile(self.seconds * 1e3, [50, 95, 99])
        return Latency(float(p50), float(p95), float(p99))

    @property
    def spread(self) -> float:
        """Half the range between the quartiles, as a share of the median."""
        low, middle, high = np.percentile(self.seconds, [25, 50, 75])
        return float((high - low) / 2 / middle)


def interleaved(
    predictors: Sequence[Predictor], inputs: Mapping[str, np.ndarray], rounds: int = 50, seed: int = 0, *,
    log: Callable[[str], None] = lambda line: None,
) -> list[Timing]:  # fmt: skip
    """Times one call of every predictor per round, in a new order each round.

    Args:
        predictors: loaded artifacts.
        inputs: what each is called with.
        rounds: timed calls of each; the first invocations build caches and are not counted.
        seed: of the order.
        log: told now and then how much is done.
    """
    for predictor in predictors:
        for _ in range(_WARM_UP):
            predictor.predict(inputs)
    rng = random.Random(seed)
    seconds = np.empty((len(predictors), rounds))
    order, told = list(range(len(predictors))), told_now_and_then("timing", log)
    for turn in range(rounds):
        rng.shuffle(order)
        for index in order:
            started = time.perf_counter()
            predictors[index].predict(inputs)
            seconds[index, turn] = time.perf_counter() - started
        told(turn + 1, rounds)
    return [Timing(row) for row in seconds]


def speedup(baseline: Timing, other: Timing) -> float:
    """Median of the ratios within the rounds: how many times faster `other` is."""
    return float(np.median(baseline.seconds / other.seconds))


def throughput(predictor: Predictor, inputs: Mapping[str, np.ndarray], seconds: float = 1.0) -> float:
    """Rows per second when all rows of `inputs` are given at once, over about `seconds`."""
    rows = len(next(iter(inputs.values())))
    predictor.predict(inputs)
    done, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds or not done:
        predictor.predict(inputs)
        done += rows
    return done / max(elapsed, 1e-9)
