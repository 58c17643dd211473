"""`compare`: several artifacts timed in turns, as a report."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfopt.errors import InputError
from tfopt.measure.findings import findings
from tfopt.measure.measure import Log, compare_artifacts
from tfopt.report import Report, machine_info
from tfopt.runtime import Predictor


def compare(
    targets: Mapping[str, str | Path | Predictor] | Sequence[str | Path],
    *,
    data: Iterable[Any] | None = None,
    inputs: Mapping[str, np.ndarray] | None = None,
    threads: int | None = None,
    rounds: int = 50,
    seconds: float = 1.0,
    memory: bool = True,
    log: Log = lambda line: None,
) -> Report:
    """Measures several artifacts against the first one, in one process, timed in turns.

    Args:
        targets: name -> artifact, or paths (named by their stems); the first is the baseline.
        data: held-out batches of (inputs, labels); no quality without it.
        inputs: one row for timing, several rows for throughput; no timing without it.
        threads: threads of each runtime.
        rounds: timed calls of each artifact.
        seconds: for which the throughput of each is counted.
        memory: whether the peak memory of a process of its own is measured for each.
        log: told what is being measured.

    Raises:
        InputError: nothing to compare, or two artifacts of the same name.
    """
    if not isinstance(targets, Mapping):
        paths = [Path(t) for t in targets]
        targets = {p.stem: p for p in paths}
        if len(targets) < len(paths):
            targets = {str(p): p for p in paths}
        if len(targets) < len(paths):
            raise InputError("the same artifact is named twice")
    if not targets:
        raise InputError("nothing to compare: name at least one artifact")
    found = compare_artifacts(
        targets, data=data, inputs=inputs, threads=threads, rounds=rounds, seconds=seconds, memory=memory, log=log
    )
    return Report(machine_info(), {}, found, steps=[], notes=findings(found))
