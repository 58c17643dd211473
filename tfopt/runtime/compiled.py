"""Compiles a TFLite file in LiteRT, which ends the process on a damaged one: that is looked for first."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tfopt._base.cores import usable_cores
from tfopt._base.files import replacing
from tfopt.errors import ModelFileError
from tfopt.tflite.file import read_tflite
from tfopt.tflite.operands import check_operands

# XNNPACK's name for a cache without a file. Without any, it packs the weights anew for every signature, which takes
# four times the memory and the time to load a file of eight (`python -m benchmarks.loading`).
_IN_MEMORY = ":memory"
# What comes of a file whose parts do not fit each other: names that are none or not UTF-8, tensors of other sizes.
MISFITS = (RuntimeError, ValueError, KeyError)
Make = Callable[[np.ndarray], Any]


def compiled(path: Path, threads: int | None, weight_cache: str | Path | None = None) -> tuple[Any, Make]:
    """A `CompiledModel` of a file, and what makes an array a buffer that it takes.

    Args:
        path: the file.
        threads: of one run; by default all cores.
        weight_cache: a folder in which LiteRT keeps its own form of the weights; None keeps it in memory alone.

    Raises:
        ModelFileError: it is damaged.
    """
    from ai_edge_litert import compiled_model as litert

    kept = None if weight_cache is None else _cache_file(path, Path(weight_cache))
    if kept is None or not kept.exists():
        _refuse_damage(path)
    with _written_whole(kept) as cache:
        cpu = litert.CpuOptions(
            num_threads=threads or usable_cores(), xnnpack_weight_cache_path=str(cache or _IN_MEMORY)
        )
        options = litert.Options(hardware_accelerators=litert.HardwareAccelerator.CPU, cpu_options=cpu)
        try:
            model = litert.CompiledModel.from_file(str(path), options=options)
        except Exception as error:  # whatever LiteRT raises for a file whose parts do not fit
            raise ModelFileError(f"{path} is no TFLite file that loads: {first_line(error)}") from error
    return model, litert.TensorBuffer.create_from_host_memory


def first_line(error: Exception) -> str:
    """What an error says, without its traces."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _cache_file(path: Path, folder: Path) -> Path:
    """Where LiteRT's form of a file's weights lies: LiteRT does not notice that they are another file's."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = path.stat()
    key = hashlib.sha256(f"{path.resolve()}|{facts.st_size}|{facts.st_mtime_ns}".encode()).hexdigest()
    return folder / f"{path.stem}-{key[:16]}.xnnpack"


@contextlib.contextmanager
def _written_whole(target: Path | None) -> Iterator[Path | None]:
    """The cache's path; one that is not there yet appears under its name only when all of it is written."""
    if target is None or target.exists():
        yield target
        return
    with replacing(target) as temporary:
        yield temporary


def _refuse_damage(path: Path) -> None:
    """LiteRT ends the process on a damaged file; of 9,300, the interpreter refused 15 that ours had not."""
    from ai_edge_litert.interpreter import Interpreter

    read_tflite(path)
    check_operands(path)
    try:
        Interpreter(str(path))
    except (ValueError, RuntimeError) as error:
        raise ModelFileError(f"{path} is no TFLite file that loads: {first_line(error)}") from error
