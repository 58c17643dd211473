"""How long trainings take, and how many epochs of each there is time for."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfopt.search.ladder import Rung

_BACKWARD = 3.0  # a training step costs about this many times the products of an answer
_START_S = 18.0  # until the first step of a training is traced, and what is cut before
_STEP_S = 0.018  # of a step, however small the student: data, losses, metrics
_UPDATE_S = 4e-9  # of one weight, by AdamW on a core of these years
OVERRUN = 1.1  # a training ends at the latest after so many times what it was given


def answer_seconds(model: Any, batches: Sequence[Any]) -> float:
    """Mean seconds for a batch of inputs, without what tracing and warming up cost."""
    call = tf.function(lambda inputs: model(inputs, training=False), reduce_retracing=True)
    for inputs in batches:
        call(inputs)
    started = time.perf_counter()
    for inputs in batches:
        call(inputs)
    return (time.perf_counter() - started) / len(batches)


def training_seconds(rung: Rung, epochs: int, answer_s: float, steps: int, *, cached: bool) -> float:
    """Estimated seconds of a student's training.

    Args:
        rung: the student.
        epochs: of it.
        answer_s: of the teacher, for one batch.
        steps: of an epoch.
        cached: the teacher answers once only, and not again for the bits of a student that it taught.
    """
    step = _STEP_S + _BACKWARD * rung.share * answer_s + _UPDATE_S * rung.weights
    lessons = epochs if not cached else 0 if rung.bits else 1
    return _START_S + steps * (epochs * step + answer_s * lessons)


def epochs_within(
    rungs: Sequence[Rung], takes: Callable[[Rung, int], float], budget_s: float | None, *, any_share: bool
) -> dict[str, int]:
    """Name of each student -> its epochs; empty where the time is too short.

    Args:
        rungs: the students.
        takes: student and epochs -> seconds.
        budget_s: for all trainings; None for as many epochs as they deserve.
        any_share: of those epochs will do; else at least half.
    """
    for part in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, *((0.4, 0.3, 0.2, 0.1) if any_share else ())):
        found = {rung.name: max(1, int(rung.epochs * part)) for rung in rungs}
        if budget_s is None or OVERRUN * sum(takes(rung, found[rung.name]) for rung in rungs) <= budget_s:
            return found
    return {}


def batches_of_inputs(task: Any, size: int, count: int) -> list[Any]:
    """Some batches of training inputs."""
    return [inputs for inputs, *_ in task.batches(size, "train", shuffle=True, epoch=0).take(count)]
