"""Measures a set of artifacts in a process of its own.

Nothing of a training that came before disturbs it there, and the number of threads can be set, which
TensorFlow allows only before its first operation.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfopt._base.children import run_in_child
from tfopt._base.spread import ALONE, Workers
from tfopt.measure.results import Measurement
from tfopt.numerics.metrics import Scored

_DAY_S = 86_400.0


def measure_in_child(
    targets: Mapping[str, Path],
    *,
    data: Path | None,
    text: np.ndarray | None,
    window: int | None,
    score: Callable[[Any], Scored] | None,
    inputs: Mapping[str, np.ndarray],
    threads: int | None,
    rounds: int,
    seconds: float,
    memory: bool,
    errors: Mapping[str, float],
    log: Callable[[str], None],
    workers: Workers = ALONE,
) -> list[Measurement]:
    """`compare_artifacts` in a process of its own; the first target is the baseline.

    Args:
        targets: name -> artifact.
        data: packed folder whose split "validation" is the held-out data, or None.
        text: token ids of held-out text, or None.
        window: with it, how many tokens a model sees at once.
        score: what an artifact's answers are worth, or None.
        inputs: one row for timing, several rows for throughput.
        threads: threads of each runtime, or None for all cores.
        rounds: timed calls of each artifact.
        seconds: for which the throughput of each artifact is counted.
        memory: whether the peak memory of each is measured.
        errors: name -> largest difference from the Keras model.
        log: told what is being measured.
        workers: who answers the held-out data.

    Raises:
        ChildFailedError: the process failed; the message holds its last words.
    """
    settings = {"threads": threads, "rounds": rounds, "seconds": seconds, "memory": memory, "errors": dict(errors),
                "text": text, "window": window, "score": score, "workers": workers}  # fmt: skip
    paths = {name: str(path) for name, path in targets.items()}
    folder = None if data is None else str(data)
    found: list[Measurement] = run_in_child(
        _measure, paths, folder, dict(inputs), settings, log=log, timeout_s=_DAY_S
    )
    return found


def _measure(
    targets: dict[str, str], data: str | None, inputs: dict[str, np.ndarray], settings: dict[str, Any],
    log: Callable[[str], None],
) -> list[Measurement]:  # fmt: skip
    """The child's side."""
    from tfopt.data.batches import batches
    from tfopt.measure.measure import compare_artifacts
    from tfopt.runtime.saved_model import set_threads

    set_threads(settings["threads"])
    held_out = None if data is None else batches(data, 64, split="validation")
    return compare_artifacts(targets, data=held_out, inputs=inputs, log=log, **settings)
