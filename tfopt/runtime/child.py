"""Runs an artifact in a process of its own."""

import dataclasses
from pathlib import Path

import numpy as np

from tfopt._base.children import LIGHT, WARM, ChildFailedError, run_in_child
from tfopt.errors import TfoptError
from tfopt.runtime.memory import peak_memory_bytes
from tfopt.runtime.predictor import Predictor


@dataclasses.dataclass(frozen=True)
class ChildRun:
    """What a child process found.

    Attributes:
        outputs: the artifact's outputs by name.
        peak_memory_bytes: largest resident memory of the process, runtime included; None where the
            system does not tell.
    """

    outputs: dict[str, np.ndarray]
    peak_memory_bytes: int | None


def try_in_child(
    path: str | Path,
    inputs: dict[str, np.ndarray],
    threads: int | None = None,
    alone: bool = False,
    timeout_s: float = 600,
    trust: bool = False,
) -> ChildRun:
    """Loads `path` with `Predictor` in a process of its own and runs it on `inputs`.

    Args:
        path: the artifact.
        inputs: by name.
        threads: of its runtime; by default all cores.
        alone: begin with an empty process, so that its peak memory is that of the artifact and its runtime.
        timeout_s: seconds until the process is ended.
        trust: as of `Predictor.load`.

    Raises:
        ChildFailedError: the process crashed, failed or took longer.
    """
    try:
        found: ChildRun = run_in_child(
            _try, str(path), inputs, threads, trust, preload=LIGHT if alone else WARM, timeout_s=timeout_s
        )
    except TfoptError as error:
        raise ChildFailedError(f"running {path} in a child process failed: {error}") from error
    return found


def _try(path: str, inputs: dict[str, np.ndarray], threads: int | None, trust: bool) -> ChildRun:
    outputs = Predictor.load(path, threads=threads, trust=trust).try_out(inputs)
    return ChildRun(outputs, peak_memory_bytes())
