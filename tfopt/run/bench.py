"""`tfopt bench`: artifacts from anywhere, timed in turns on the same inputs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfopt._base.files import existing
from tfopt._base.formats import FORMATS
from tfopt.data.batches import batches
from tfopt.data.records.manifest import splits
from tfopt.errors import InputError
from tfopt.measure.measure import Log
from tfopt.report import Report
from tfopt.run.compare import compare
from tfopt.runtime import Predictor

_ROWS = 32


def bench(
    artifacts: Sequence[Path],
    *,
    length: int,
    data: Path | None = None,
    rounds: int = 50,
    threads: int | None = None,
    trust: bool = False,
    imports: Sequence[str] = (),
    log: Log = lambda line: None,
) -> Report:
    """Measures artifacts against the first one.

    Args:
        artifacts: paths; a folder that holds `saved_model/` or `model.tflite` stands for that.
        length: most tokens of the timed inputs; fewer where an artifact takes no more.
        data: packed data; its "validation" split, or its only one, gives the accuracy.
        rounds: timed calls of each artifact.
        threads: threads of each runtime.
        trust: run code that they hold or name.
        imports: modules or files that define their classes.
        log: told what is being measured.

    Raises:
        InputError: an artifact that takes no inputs of the first one's kind.
    """
    names = _names([_resolve(path) for path in artifacts])
    predictors = {
        name: Predictor.load(path, threads=threads, trust=trust, imports=imports) for name, path in names.items()
    }
    first = next(iter(predictors.values()))
    inputs = common_inputs(list(predictors.values()), length)
    taken = {value.shape[1] for value in inputs.values() if value.ndim > 1}
    if (
        taken
        and length not in taken
        and any(None in shape[1:] for shape, _ in first.signatures[-1].inputs.values())
    ):
        log(f"timed with {max(taken)} tokens, the most that all artifacts take; {length} were asked for")
    return compare(predictors, data=_held_out(data), inputs=inputs, threads=threads, rounds=rounds, log=log)


def common_inputs(predictors: Sequence[Predictor], length: int) -> dict[str, np.ndarray]:
    """Inputs for the first artifact as long as all of them take, at most `length`.

    Raises:
        InputError: an artifact that takes none.
    """
    first = predictors[0]
    for predictor in predictors:
        length = min([length, *([max(predictor.lengths)] if predictor.lengths else [])])
    for predictor in predictors:
        length = _longest(predictor, first, length)
    return random_inputs(first, length)


def _longest(predictor: Predictor, first: Predictor, length: int) -> int:
    """The longest inputs of the first artifact's kind that another one takes; position tables have an end."""
    low, high = 1, length  # a length that is taken, if any is, and the longest that may be
    while low < high:
        middle = high if low == 1 and high == length else (low + high + 1) // 2
        low, high = (middle, high) if _takes(predictor, first, middle) else (low, middle - 1)
    predictor.predict({name: value[:1] for name, value in random_inputs(first, low).items()})
    return low


def _takes(predictor: Predictor, first: Predictor, length: int) -> bool:
    try:
        predictor.predict({name: value[:1] for name, value in random_inputs(first, length).items()})
    except InputError:
        return False
    return True


def random_inputs(predictor: Predictor, length: int) -> dict[str, np.ndarray]:
    """Inputs that an artifact takes: ids of its tables, masks of ones, normal values; unknown axes get `length`."""
    signature = predictor.signatures[-1]
    rng, described = np.random.default_rng(0), predictor.described
    assert described is not None
    found: dict[str, Any] = {}
    for name, (shape, dtype) in signature.inputs.items():
        sizes = (_ROWS, *(d if d is not None else length for d in shape[1:]))
        if name in described.masks:
            found[name] = np.ones(sizes, dtype)
        elif name in described.limits or np.issubdtype(dtype, np.integer):
            found[name] = rng.integers(0, described.limits.get(name, 2), sizes).astype(dtype)
        else:
            found[name] = rng.standard_normal(sizes).astype(dtype)
    if predictor.lengths and length <= max(predictor.lengths):
        found = {name: value[:, :length] for name, value in found.items()}
    return found


def _resolve(path: Path) -> Path:
    existing(path, "artifact")
    found = [path / format.file for format in FORMATS if (path / format.file).exists()]
    return found[0] if found else path


def _names(paths: list[Path]) -> dict[str, Path]:
    """Short names that tell the artifacts apart."""
    inner = {format.file for format in FORMATS}
    plain = [p.parent.name if p.name in inner else p.stem for p in paths]
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
