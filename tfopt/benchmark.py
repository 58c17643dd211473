"""`tfopt bench`: artifacts from anywhere, timed in turns on the same inputs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfopt.compare import compare
from tfopt.data.batches import batches
from tfopt.data.pack import splits
from tfopt.errors import InputError
from tfopt.files import existing
from tfopt.measure.measure import Log
from tfopt.report import Report
from tfopt.runtime import Predictor

_ROWS = 32


def bench(
    artifacts: Sequence[Path],
    length: int,
    data: Path | None = None,
    rounds: int = 50,
    threads: int | None = None,
    log: Log = lambda line: None,
) -> Report:
    """Measures artifacts against the first one.

    Args:
        artifacts: paths; a folder that holds `saved_model/` or `model.tflite` stands for that.
        length: sequence length of the timed inputs, where the first artifact takes any.
        data: packed data; its "validation" split, or its only one, gives the accuracy.
        rounds: timed calls of each artifact.
        threads: threads of each runtime.
        log: told what is being measured.
    """
    names = _names([_resolve(path) for path in artifacts])
    predictors = {name: Predictor.load(path, threads) for name, path in names.items()}
    first = next(iter(predictors.values()))
    return compare(predictors, _held_out(data), random_inputs(first, length), threads, rounds, log)


def random_inputs(predictor: Predictor, length: int) -> dict[str, np.ndarray]:
    """Inputs that an artifact takes: small ids, masks of ones, normal values; unknown axes get `length`."""
    signature = predictor.signatures[-1]
    rng = np.random.default_rng(0)
    found: dict[str, Any] = {}
    for name, (shape, dtype) in signature.inputs.items():
        sizes = (_ROWS, *(d if d is not None else length for d in shape[1:]))
        if name == "attention_mask":
            found[name] = np.ones(sizes, dtype)
        elif np.issubdtype(dtype, np.integer):
            found[name] = rng.integers(0, 100, sizes).astype(dtype)
        else:
            found[name] = rng.standard_normal(sizes).astype(dtype)
    if predictor.lengths and length <= max(predictor.lengths):
        found = {name: value[:, :length] for name, value in found.items()}
    return found


def _resolve(path: Path) -> Path:
    existing(path, "artifact")
    for inner in ("saved_model", "model.tflite", "model.keras"):
        if (path / inner).exists():
            return path / inner
    return path


def _names(paths: list[Path]) -> dict[str, Path]:
    """Short names that tell the artifacts apart."""
    plain = [p.parent.name if p.name in ("saved_model", "model.tflite", "model.keras") else p.stem for p in paths]
    unique = [name if plain.count(name) == 1 else str(path) for name, path in zip(plain, paths, strict=True)]
    if len(set(unique)) < len(unique):
        raise InputError("the same artifact is named twice")
    return dict(zip(unique, paths, strict=True))


def _held_out(data: Path | None) -> Any:
    if data is None:
        return None
    found = splits(existing(data, "packed data folder"))
    if not found:
        raise InputError(f"{data} holds no packed data")
    return batches(data, 64, split="validation" if "validation" in found else found[0])
