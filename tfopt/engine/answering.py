"""What each process of a batch prediction does: it answers blocks. Loads no TensorFlow unless the artifact does."""

import dataclasses
import gzip
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfopt.data.records.encode import encode_examples
from tfopt.data.records.fields import Field, columns_of
from tfopt.data.tokenizers import OnLong
from tfopt.errors import DataError, InputError
from tfopt.runtime.predictor import Predictor

ROW = "row"
Rows = list[Any] | dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Job:
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
class Block:
    """Answers to neighbouring rows: how many, their records, and what these hold."""

    rows: int
    content: bytes
    fields: dict[str, Field]


def answered(predictor: Predictor, job: Job, start: int, rows: Rows) -> Block:
    """Answers to a block."""
    if isinstance(rows, dict):
        found: Mapping[str, Any] = predictor.predict(rows, batch_size=job.batch_size)
    else:
        found = _of_texts(predictor, rows, job)
    if ROW in found:
        raise InputError(f"an output of {predictor.path} is named {ROW!r}, as the number of a record is; rename it")
    asked = len(next(iter(rows.values()))) if isinstance(rows, dict) else len(rows)
    counts = {name: len(value) for name, value in found.items()}
    if set(counts.values()) != {asked}:
        raise DataError(f"{predictor.path} answered {asked} rows by {counts}; each row needs an answer of its own")
    values: dict[str, Any] = {name: _storable(value) for name, value in found.items()}
    fields = {name: _field(value, predictor.row_shape(name)) for name, value in values.items()}
    fields[ROW], values[ROW] = Field("int64"), np.arange(start, start + asked)
    content = encode_examples(fields, columns_of(fields, values))[0]
    return Block(asked, gzip.compress(content, mtime=0) if job.compression else content, fields)


def _of_texts(predictor: Predictor, texts: list[Any], job: Job) -> dict[str, Any]:
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
