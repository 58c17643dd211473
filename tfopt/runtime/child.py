"""Runs an artifact in a process of its own."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tfopt._base.children import LIGHT, WARM, ChildFailedError, run_in_child
from tfopt._base.memory import peak_memory_bytes
from tfopt.errors import TfoptError
from tfopt.runtime.predictor import Predictor

_ROWS_IN_SECOND = 8  # its kernels are slow


@dataclasses.dataclass(frozen=True)
class ChildRun:
    """What a child process found.

    Attributes:
        outputs: the artifact's outputs by name.
        again: the same from a second run, on the rows from the last to the first; None where it was not asked for.
        second: those of a second runtime, of the first rows; None where there is none.
        second_name: of that runtime, or why there is none.
        peak_memory_bytes: largest resident memory of the process, runtime included; None where the
            system does not tell.
    """

    outputs: dict[str, np.ndarray]
    peak_memory_bytes: int | None
    again: dict[str, np.ndarray] | None = None
    second: dict[str, np.ndarray] | None = None
    second_name: str = "not asked for"


def try_in_child(
    path: str | Path,
    inputs: dict[str, np.ndarray],
    threads: int | None = None,
    alone: bool = False,
    again: bool = False,
    timeout_s: float = 600,
    trust: bool = False,
    imports: Sequence[str] = (),
) -> ChildRun:
    """Loads `path` with `Predictor` in a process of its own and runs it on `inputs`.

    Args:
        path: the artifact.
        inputs: by name.
        threads: of its runtime; by default all cores.
        alone: begin with an empty process, so that its peak memory is that of the artifact and its runtime.
        again: run it once more on the rows in the other order, and in a second runtime.
        timeout_s: seconds until the process is ended.
        trust: as of `Predictor.load`.
        imports: likewise.

    Raises:
        ChildFailedError: the process crashed, failed or took longer.
    """
    try:
        found: ChildRun = run_in_child(
            _try, str(path), inputs, threads, trust, again, tuple(imports), preload=LIGHT if alone else WARM,
            timeout_s=timeout_s,
        )  # fmt: skip
    except TfoptError as error:
        raise ChildFailedError(f"running {path} in a child process failed: {error}") from error
    return found


def _try(
    path: str,
    inputs: dict[str, np.ndarray],
    threads: int | None,
    trust: bool,
    again: bool,
    imports: tuple[str, ...],
) -> ChildRun:
    predictor = Predictor.load(path, threads=threads, trust=trust, imports=imports)
    outputs = predictor.try_out(inputs)
    if not again:
        return ChildRun(outputs, peak_memory_bytes())
    from tfopt.runtime.second import run_second

    backwards = predictor.try_out({name: value[::-1] for name, value in inputs.items()})
    second, name = run_second(Path(path), {name: value[:_ROWS_IN_SECOND] for name, value in inputs.items()})
    turned = {name: value[::-1] for name, value in backwards.items()}
    return ChildRun(outputs, peak_memory_bytes(), turned, second=second, second_name=name)
