"""Runs an artifact in a process of its own: a crash stays there, and its peak memory is its own."""

import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from tfopt.errors import TfoptError


class ChildFailedError(TfoptError, RuntimeError):
    """The child process ended without a result; the message holds its last words."""


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


def run_in_child(
    path: str | Path, inputs: dict[str, np.ndarray], threads: int | None = None, timeout_s: float = 600
) -> ChildRun:
    """Loads `path` with `Predictor` in a new Python process and runs it on `inputs`.

    Raises:
        ChildFailedError: the process crashed, failed or took longer than `timeout_s` seconds.
    """
    with tempfile.TemporaryDirectory(prefix="tfopt-") as folder:
        given, got = Path(folder, "inputs.npz"), Path(folder, "outputs.npz")
        np.savez(given, **inputs)  # type: ignore[arg-type]
        command = [sys.executable, "-m", "tfopt.runtime", str(path), str(given), str(got), str(threads or 0)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired as error:
            raise ChildFailedError(f"no answer from {path} within {timeout_s:g} s") from error
        if done.returncode != 0:
            last = [line for line in done.stderr.splitlines() if line.strip()][-1:] or ["no message"]
            how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
            raise ChildFailedError(f"running {path} in a child process failed ({how}): {last[0]}")
        facts = json.loads(done.stdout.splitlines()[-1])
        with np.load(got) as outputs:
            return ChildRun({name: outputs[name] for name in outputs.files}, **facts)
