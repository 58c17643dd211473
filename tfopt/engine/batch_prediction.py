"""Batch prediction: answers to any number of texts or rows as TFRecord shards, in order, each exactly once.

Several processes answer, each with the artifact loaded; this one alone writes. A process that is killed is replaced
and its block answered anew; when this one is, the same call goes on behind the last shard that was finished.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfopt._base.files import existing, sha256, tree_digest
from tfopt._base.spread import Workers
from tfopt.data.readers.base import of_pieces
from tfopt.data.readers.open import open_source
from tfopt.data.readers.texts import read_piece
from tfopt.data.records.manifest import COMPRESSIONS, Manifest, splits
from tfopt.data.tokenizers import OnLong
from tfopt.engine.answering import Job, Rows, answered
from tfopt.engine.opening import generates
from tfopt.engine.unfinished import Unfinished
from tfopt.errors import InputError
from tfopt.runtime.answers import is_texts
from tfopt.runtime.predictor import Predictor

_BLOCK = 128  # rows, about, that a process is given at once
_UNFINISHED = ".unfinished"


def batch_predict(
    artifact: str | Path,
    data: str | Path | Sequence[Any] | Mapping[str, Any],
    *,
    out: str | Path,
    workers: Workers | int = 1,
    batch_size: int = 32,
    shard_rows: int = 1 << 16,
    text_column: str | None = None,
    on_long: OnLong | None = None,
    compression: str = "",
    threads: int | None = None,
    trust: bool = False,
    imports: Sequence[str] = (),
    progress: Callable[[int], None] = lambda rows: None,
) -> Manifest:
    """Writes what an artifact answers to all of some data as a folder of TFRecord shards with their manifest.

    Records are in the order of the data. Each holds "row", the number of its text or row from 0, and the outputs as
    `Predictor.predict` names them: numbers as float32, or int64 from 0, labels as strings, entities as JSON.
    Outputs for each token are as wide as those of the texts of similar length that went with them.
    `data.columns.record_batches` reads them. The folder appears when it is complete; until then finished shards lie
    beside it in `<out>.unfinished`, from which the same call goes on.

    Args:
        artifact: what `Predictor.load` takes.
        data: a file of texts, or a folder that `datasets` saved, see `data.readers.open.open_source`; a list of
            texts or pairs of them; or name -> array with the batch axis first.
        out: folder to create; one that holds records is replaced.
        workers: who answers; a number is one of processes.
        batch_size: rows in one run; texts of similar length go together.
        shard_rows: records of a file at least, but for the last.
        text_column: of a file: column or key of the text.
        on_long: of texts with more tokens than the artifact takes: "error", or "truncate".
        compression: of the shards, "" or "GZIP".
        threads: of the runtime in each process; by default all cores are shared out, and an actor of Ray has one.
        trust, imports: as for `Predictor.load`.
        progress: told how many rows are answered, now and then.

    Raises:
        InputError: a setting that does not fit, an artifact that generates, texts that it does not take, or another
            process that answers into the same folder.
        DataError: no data, data that cannot be read, or an answer of NaN.
        ChildFailedError: a block ended several processes.
    """
    artifact, out = existing(artifact, "artifact").resolve(), Path(out)
    imports = [str(Path(one).resolve()) if Path(one).is_file() else one for one in imports]  # also for Ray's actors
    workers = Workers.of(workers)
    for name, value in (("batch_size", batch_size), ("shard_rows", shard_rows)):
        if value < 1:
            raise InputError(f"{name} must be 1 or more, got {value}")
    if compression not in COMPRESSIONS:
        raise InputError(f"compression must be '' or 'GZIP', got {compression!r}")
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not splits(out)):
        raise InputError(f"{out} is not empty and holds no records; choose another folder")
    if generates(artifact):
        raise InputError(f"{artifact} generates; `tfopt.Generator` continues texts with it")
    workers.check()
    job = Job(batch_size, on_long, compression)
    facts = {
        "tfopt": importlib.metadata.version("tfopt"), "artifact": tree_digest(artifact),
        "imports": _of_imports(imports), "data": _digest(data), "text_column": text_column,
        "shard_rows": shard_rows, **dataclasses.asdict(job),
    }  # fmt: skip
    load = functools.partial(
        Predictor.load, artifact, threads=workers.threads(threads), trust=trust, imports=imports
    )
    shards = Unfinished(out.with_name(out.name + _UNFINISHED), facts, least=shard_rows, compression=compression)
    with contextlib.closing(shards):
        size = batch_size * max(1, _BLOCK // batch_size)
        calls = _calls(_blocks(data, text_column, size=size), job, first=shards.rows)
        with contextlib.closing(workers.each(answered, calls, setup=load)) as blocks:
            for block in blocks:
                shards.add(block)
                progress(shards.rows)
        return shards.finish(out)


def _blocks(data: Any, text_column: str | None, *, size: int) -> Iterator[Rows]:
    """The data in blocks of this size, but for the last."""
    if isinstance(data, str | Path):
        source = open_source(data, text_column, label_column=None)
        pieces = of_pieces(source, read_piece, ((piece,) for piece in source.pieces()))
        yield from _of_lists((piece.texts for piece in pieces), size)
    elif isinstance(data, Mapping):
        arrays = {name: np.asarray(value) for name, value in data.items()}
        counts = {name: len(value) if value.ndim else 0 for name, value in arrays.items()}
        if len(set(counts.values())) > 1:
            raise InputError(f"inputs must have the same number of rows, got {counts}")
        for start in range(0, max(counts.values(), default=0), size):
            yield {name: value[start : start + size] for name, value in arrays.items()}
    else:
        yield from _of_lists([list(data)], size)


def _of_lists(parts: Iterable[list[Any]], size: int) -> Iterator[list[Any]]:
    kept: list[Any] = []
    for part in parts:
        kept += part
        whole = len(kept) - len(kept) % size
        for start in range(0, whole, size):
            yield kept[start : start + size]
        del kept[:whole]
    if kept:
        yield kept


def _calls(blocks: Iterable[Rows], job: Job, first: int) -> Iterator[tuple[Any, ...]]:
    """Arguments of `answered` from a row on, at which a block begins."""
    start = 0
    for block in blocks:
        if start >= first:
            yield job, start, block
        start += len(next(iter(block.values())) if isinstance(block, dict) else block)


def _of_imports(imports: Sequence[str]) -> list[str]:
    """Modules as they are named, and the content of files."""
    return [sha256(one) if Path(one).is_file() else one for one in imports]


def _digest(data: Any) -> str:
    """Of what is asked, so that shards of other data are not taken for finished ones.

    Raises:
        InputError: it is nothing that can be asked.
    """
    if isinstance(data, str | Path):  # the name says how a file is read
        return f"{Path(data).name} {tree_digest(existing(data, 'data file'))}"
    if not isinstance(data, Mapping):
        if not isinstance(data, list | tuple) or (len(data) and not is_texts(data)):
            raise InputError(
                f"data must be a file, a list of texts or pairs of them, or arrays by name, got {data!r:.80}"
            )
        return hashlib.sha256(json.dumps(list(data)).encode()).hexdigest()
    found = hashlib.sha256()
    for name in sorted(data):
        value = np.ascontiguousarray(data[name])
        found.update(f"{name} {value.dtype.str} {value.shape}\n".encode())
        found.update(value.tobytes() if value.dtype != object else json.dumps(value.tolist()).encode())
    return found.hexdigest()
