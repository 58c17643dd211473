"""Measures a set of artifacts in a process of its own.

Nothing of a training that came before disturbs it there, and the number of threads can be set, which
TensorFlow allows only before its first operation.
"""

import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfopt.errors import WorkFailedError
from tfopt.measure.results import Measurement

_PROGRESS = "> "


def measure_in_child(
    targets: Mapping[str, Path],
    *,
    data: Path | None,
    text: np.ndarray | None,
    window: int | None,
    inputs: Mapping[str, np.ndarray],
    threads: int | None,
    rounds: int,
    errors: Mapping[str, float],
    log: Callable[[str], None],
) -> list[Measurement]:
    """`compare_artifacts` in a new Python process; the first target is the baseline.

    Args:
        targets: name -> artifact.
        data: packed folder whose split "validation" is the held-out data, or None.
        text: token ids of held-out text, or None.
        window: with it, how many tokens a model sees at once.
        inputs: one row for timing, several rows for throughput.
        threads: threads of each runtime, or None for all cores.
        rounds: timed calls of each artifact.
        errors: name -> largest difference from the Keras model.
        log: told what is being measured.

    Raises:
        WorkFailedError: the process failed; the message holds its last words.
    """
    request = {
        "targets": {name: str(path) for name, path in targets.items()}, "data": None if data is None else str(data),
        "window": window, "threads": threads, "rounds": rounds, "errors": dict(errors),
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="tfopt-") as name:
        folder = Path(name)
        (folder / "request.json").write_text(json.dumps(request), "utf-8")
        np.savez(folder / "inputs.npz", **inputs)  # type: ignore[arg-type]
        if text is not None:
            np.save(folder / "text.npy", text)
        command = [sys.executable, "-m", "tfopt.measure", str(folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            last = _follow(process, log)
        if process.returncode != 0:
            raise WorkFailedError(f"measuring failed (exit code {process.returncode}): {last}")
        stored = json.loads((folder / "result.json").read_text("utf-8"))
    return [Measurement.from_dict(values) for values in stored]


def _follow(process: "subprocess.Popen[str]", log: Callable[[str], None]) -> str:
    """Passes progress on and returns the last other line."""
    last = "no message"
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith(_PROGRESS):
                log(line.removeprefix(_PROGRESS).rstrip())
            elif line.strip():
                last = line.strip()
    except BaseException:  # interrupted: the child must not go on alone
        process.kill()
        raise
    return last


def serve(folder: Path) -> None:
    """The child's side: reads the request in `folder`, writes the result there."""
    from tfopt.data.batches import batches
    from tfopt.measure.measure import compare_artifacts

    request: dict[str, Any] = json.loads((folder / "request.json").read_text("utf-8"))
    with np.load(folder / "inputs.npz") as stored:
        inputs = {name: stored[name] for name in stored.files}
    if request["threads"] is not None:
        from tfopt.runtime.saved_model import set_threads

        set_threads(request["threads"])
    found = compare_artifacts(
        request["targets"],
        data=None if request["data"] is None else batches(request["data"], 64, split="validation"),
        inputs=inputs,
        threads=request["threads"],
        rounds=request["rounds"],
        errors=request["errors"],
        log=lambda line: print(f"{_PROGRESS}{line}", flush=True),  # noqa: T201
        text=None if request["window"] is None else np.load(folder / "text.npy"),
        window=request["window"],
    )
    (folder / "result.json").write_text(json.dumps([dataclasses.asdict(m) for m in found]), "utf-8")
