"""Batch prediction: answers to any number of texts or rows as TFRecord shards, in order, each exactly once.

Several processes answer, each with the artifact loaded; this one alone writes. A process that is killed is replaced
and its block answered anew; when this one is, the same call goes on behind the last shard that was finished.
"""

import contextlib
import dataclasses
import functools
import gzip
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydantic

from tfopt._base.cores import usable_cores
from tfopt._base.files import existing, remove, replacing, tree_digest, write_json
from tfopt._base.foreign import read_json
from tfopt._base.spread import Workers
from tfopt.data.readers.base import of_pieces
from tfopt.data.readers.open import open_source
from tfopt.data.readers.texts import read_piece
from tfopt.data.records.encode import encode_examples
from tfopt.data.records.fields import Field, columns_of
from tfopt.data.records.framing import scan_records
from tfopt.data.records.manifest import COMPRESSIONS, SPLIT, Manifest, shards_of, splits, write_manifest
from tfopt.data.tokenizers import OnLong
from tfopt.engine.opening import generates
from tfopt.errors import DataError, InputError
from tfopt.runtime.predictor import Predictor

ROW = "row"
_BLOCK = 256  # rows that a process is given at once
_JOB, _FIELDS, _UNFINISHED = "job.json", "fields.json", ".unfinished"
Rows = list[Any] | dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Job:
    """What a process does with every block.

    Attributes:
        batch_size: rows in one run of the artifact.
        on_long: of texts with more tokens than it takes.
        compression: of the shards.
    """

    batch_size: int
    on_long: OnLong | None
    compression: str


@dataclasses.dataclass(frozen=True)
class _Block:
    """Answers to neighbouring rows: how many, their records, and what these hold."""

    rows: int
    content: bytes
    fields: dict[str, Field]


def batch_predict(
    artifact: str | Path,
    data: str | Path | Sequence[Any] | Mapping[str, Any],
    out: str | Path,
    *,
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
    `Predictor.predict` names them: numbers as float32 or int64, labels as strings, entities as JSON.
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
        InputError: a setting that does not fit, an artifact that generates, texts that it does not take.
        DataError: no data, data that cannot be read, or an answer of NaN.
        ChildFailedError: a block ended several processes.
    """
    artifact, out = existing(artifact, "artifact"), Path(out)
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
    job = _Job(batch_size, on_long, compression)
    facts = {"artifact": tree_digest(artifact), "data": _digest(data), "text_column": text_column,
             "shard_rows": shard_rows, **dataclasses.asdict(job)}  # fmt: skip
    shards = _Shards(out.with_name(out.name + _UNFINISHED), facts, least=shard_rows, compression=compression)
    calls = _calls(_blocks(data, text_column), job, first=shards.rows)
    if threads is None and workers.elsewhere:
        threads = 1 if workers.through == "ray" else max(1, usable_cores() // workers.count)
    load = functools.partial(Predictor.load, artifact, threads=threads, trust=trust, imports=tuple(imports))
    for block in workers.each(_answered, calls, setup=load):
        shards.add(block)
        progress(shards.rows)
    return shards.close(out)


# what is asked


def _blocks(data: Any, text_column: str | None) -> Iterator[Rows]:
    """The data in blocks of the same size, but for the last."""
    if isinstance(data, str | Path):
        source = open_source(data, text_column, label_column=None)
        pieces = of_pieces(source, read_piece, ((piece,) for piece in source.pieces()))
        yield from _of_lists(piece.texts for piece in pieces)
    elif isinstance(data, Mapping):
        arrays = {name: np.asarray(value) for name, value in data.items()}
        counts = {name: len(value) if value.ndim else 0 for name, value in arrays.items()}
        if len(set(counts.values())) > 1:
            raise InputError(f"inputs must have the same number of rows, got {counts}")
        for start in range(0, max(counts.values(), default=0), _BLOCK):
            yield {name: value[start : start + _BLOCK] for name, value in arrays.items()}
    else:
        yield from _of_lists([list(data)])


def _of_lists(parts: Iterable[list[Any]]) -> Iterator[list[Any]]:
    kept: list[Any] = []
    for part in parts:
        kept += part
        whole = len(kept) - len(kept) % _BLOCK
        for start in range(0, whole, _BLOCK):
            yield kept[start : start + _BLOCK]
        del kept[:whole]
    if kept:
        yield kept


def _calls(blocks: Iterable[Rows], job: _Job, first: int) -> Iterator[tuple[Any, ...]]:
    """Arguments of `_answered` from a row on, at which a block begins."""
    for number, block in enumerate(blocks):
        if number * _BLOCK >= first:
            yield job, number * _BLOCK, block


def _digest(data: Any) -> str:
    """Of what is asked, so that shards of other data are not taken for finished ones."""
    if isinstance(data, str | Path):
        return tree_digest(existing(data, "data file"))
    if not isinstance(data, Mapping):
        return hashlib.sha256(json.dumps(list(data)).encode()).hexdigest()
    found = hashlib.sha256()
    for name in sorted(data):
        value = np.ascontiguousarray(data[name])
        found.update(f"{name} {value.dtype.str} {value.shape}\n".encode())
        found.update(value.tobytes() if value.dtype != object else json.dumps(value.tolist()).encode())
    return found.hexdigest()


# what a process does


def _answered(predictor: Predictor, job: _Job, start: int, rows: Rows) -> _Block:
    """Answers to a block."""
    if isinstance(rows, dict):
        found: Mapping[str, Any] = predictor.predict(rows, batch_size=job.batch_size)
    else:
        found = _of_texts(predictor, rows, job)
    if ROW in found:
        raise InputError(f"an output of {predictor.path} is named {ROW!r}, as the number of a record is; rename it")
    count = len(next(iter(found.values())))
    values: dict[str, Any] = {name: _storable(value) for name, value in found.items()}
    fields = {name: _field(value, predictor.row_shape(name)) for name, value in values.items()}
    fields[ROW], values[ROW] = Field("int64"), np.arange(start, start + count)
    content = encode_examples(fields, columns_of(fields, values))[0]
    return _Block(count, gzip.compress(content, mtime=0) if job.compression else content, fields)


def _of_texts(predictor: Predictor, texts: list[Any], job: _Job) -> dict[str, Any]:
    """Answers to texts, those of similar length together, so that little is padded."""
    order = sorted(range(len(texts)), key=lambda i: sum(map(len, texts[i])))  # characters, also of pairs
    found: dict[str, list[Any]] = {}
    for start in range(0, len(order), job.batch_size):
        places = order[start : start + job.batch_size]
        answers = predictor.predict([texts[i] for i in places], on_long=job.on_long)
        for name, value in answers.items():
            column = found.setdefault(name, [None] * len(texts))
            for place, one in zip(places, value, strict=True):
                column[place] = one
    return {name: _column(values) for name, values in found.items()}


def _column(values: list[Any]) -> Any:
    """Values of rows as one array where they have one shape."""
    if isinstance(values[0], tuple):
        return values
    same = len({np.shape(value) for value in values}) == 1
    return np.stack(values) if same else values


def _storable(value: Any) -> Any:
    """An output as records hold it."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "iubf":
        return value
    first = value[0]
    if isinstance(first, tuple):  # entities
        return [json.dumps([dataclasses.asdict(one) for one in row], ensure_ascii=False) for row in value]
    if isinstance(first, bytes):
        return [one.decode("utf-8", "replace") for one in value]
    return [str(one) for one in value] if isinstance(first, str) else list(value)


def _field(value: Any, shape: tuple[int | None, ...]) -> Field:
    if isinstance(value, list) and isinstance(value[0], str):
        return Field("string")
    kind = np.asarray(value[0]).dtype.kind
    return Field("int64" if kind in "iub" else "float32", shape)


# what is written


class _Shards:
    """The folder of an unfinished job: shards that are complete, and the blocks of the next one.

    Args:
        folder: of it; what another job left there is removed.
        facts: that tell the job.
        least: records of a shard.
        compression: of them.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any], *, least: int, compression: str) -> None:
        self._folder, self._least, self._compression = folder, least, compression
        self._counts: list[int] = []
        self._blocks: list[_Block] = []
        self._fields: dict[str, Field] = {}
        if folder.exists() and not self._go_on(facts):
            remove(folder)
        if not folder.exists():
            with replacing(folder) as temporary:
                temporary.mkdir()
                write_json(temporary / _JOB, facts)

    def _go_on(self, facts: Mapping[str, Any]) -> bool:
        """Takes over what an earlier call of the same job has finished; whether there is such a job."""
        if not (self._folder / _JOB).exists() or read_json(self._folder / _JOB, "job") != dict(facts):
            return False
        with contextlib.suppress(DataError):  # it is damaged, and done again with those behind it
            for number in range(sum(1 for _ in self._folder.glob("*.shard"))):
                path = self._shard(number)
                self._counts.append(sum(1 for _ in scan_records(path, self._compression)))
        if self._counts:
            self._fields = pydantic.TypeAdapter(dict[str, Field]).validate_python(
                read_json(self._folder / _FIELDS, "fields")
            )
        return True

    def _shard(self, number: int) -> Path:
        return self._folder / f"{number:05d}.shard"

    @property
    def rows(self) -> int:
        """That are answered."""
        return sum(self._counts) + sum(block.rows for block in self._blocks)

    def add(self, block: _Block) -> None:
        """Takes the answers that come next."""
        if self._fields and block.fields != self._fields:
            raise DataError(f"outputs differ between blocks: {self._fields} and {block.fields}")
        if not self._fields:
            write_json(self._folder / _FIELDS, {name: dataclasses.asdict(f) for name, f in block.fields.items()})
        self._fields = block.fields
        self._blocks.append(block)
        if sum(one.rows for one in self._blocks) >= self._least:
            self._write()

    def _write(self) -> None:
        with replacing(self._shard(len(self._counts))) as path:
            path.write_bytes(b"".join(block.content for block in self._blocks))
        self._counts.append(sum(block.rows for block in self._blocks))
        self._blocks = []

    def close(self, out: Path) -> Manifest:
        """Makes the finished folder of it."""
        if self._blocks:
            self._write()
        if not self._counts:
            remove(self._folder)
            raise DataError("there is no data to answer")
        paths = []
        with replacing(out) as temporary:
            temporary.mkdir()
            for number in range(len(self._counts)):
                name = f"{SPLIT}-{number:05d}-of-{len(self._counts):05d}.tfrecord"
                _link(self._shard(number), temporary / name)
                paths.append(temporary / name)
            manifest = Manifest(
                sum(self._counts),
                shards_of(paths, self._counts),
                fields=self._fields,
                compression=self._compression,
            )
            write_manifest(temporary, SPLIT, manifest)
        remove(self._folder)
        return manifest


def _link(source: Path, target: Path) -> None:
    """The same file at another place, or a copy where the disk has no such links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
