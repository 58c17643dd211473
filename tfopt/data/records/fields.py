"""What a record holds: the dtype and the shape of each feature, and columns of values that fit them."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pydantic

from tfopt.errors import DataError, InputError

DType = Literal["int64", "float32", "string", "bytes"]
_RAW = ("string", "bytes")
_LONGEST_NAME = 128


@dataclasses.dataclass(frozen=True)
class Field:
    """One feature of every record.

    Attributes:
        dtype: "int64" (0 or more), "float32" (finite), "string" (UTF-8) or "bytes".
        shape: of its value; only the first size may be None, which is then another in each record. Strings and
            bytes are single values.
        limit: of integers: values are below it; None for no limit.
    """

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")
    dtype: DType
    shape: tuple[int | None, ...] = ()
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in ("int64", "float32", *_RAW):
            raise InputError(f"dtype must be int64, float32, string or bytes, got {self.dtype!r}")
        sizes = self.shape[1:] if self.shape[:1] == (None,) else self.shape
        if any(size is None or size < 1 for size in sizes) or (self.shape and self.dtype in _RAW):
            raise InputError(f"a feature of {self.dtype} cannot have the shape {self.shape}")

    @property
    def is_ragged(self) -> bool:
        return self.shape[:1] == (None,)

    @property
    def row(self) -> int:
        """Values of one record, or, where it is ragged, of one step of its first axis."""
        return math.prod(size for size in self.shape if size is not None)


Fields = Mapping[str, Field]


@dataclasses.dataclass(frozen=True)
class Column:
    """The values of one feature in many records.

    Attributes:
        values: of all records one after another: int64, float32, or bytes as uint8.
        lengths: how many of them each record has, int64.
    """

    values: np.ndarray
    lengths: np.ndarray

    def take(self, rows: np.ndarray) -> "Column":
        """The column of these records, in this order."""
        lengths = self.lengths[rows]
        starts = (np.cumsum(self.lengths) - self.lengths)[rows]
        return Column(self.values[spread(starts, lengths)], lengths)

    def between(self, start: int, stop: int) -> "Column":
        """The column of neighbouring records; nothing is copied."""
        before = int(self.lengths[:start].sum())
        lengths = self.lengths[start:stop]
        return Column(self.values[before : before + int(lengths.sum())], lengths)


def spread(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Every index of runs that begin at `starts` and have these lengths, one run after another."""
    shift = starts - (np.cumsum(lengths) - lengths)
    return np.repeat(shift, lengths) + np.arange(int(lengths.sum()))


def columns_of(fields: Fields, data: Mapping[str, Any]) -> dict[str, Column]:
    """Columns out of values by name: arrays with a row for each record, or lists with a value for each.

    Raises:
        DataError: a feature is missing or unknown, has another dtype or shape, is out of range or not finite, or
            the features differ in records.
    """
    if set(fields) != set(data):
        raise DataError(f"records must have the features {sorted(fields)}, got {sorted(map(str, data))}")
    long = [name for name in fields if not 0 < len(name.encode()) < _LONGEST_NAME]
    if long:
        raise DataError(f"names of features have 1 to {_LONGEST_NAME - 1} bytes, got {long[0][:200]!r}")
    found = {name: _column(name, field, data[name]) for name, field in fields.items()}
    counts = {name: column.lengths.size for name, column in found.items()}
    if len(set(counts.values())) != 1:
        raise DataError(f"features differ in records: {counts}")
    return found


def _column(name: str, field: Field, data: Any) -> Column:
    if field.dtype in _RAW:
        return _raw(name, field, data)
    if isinstance(data, np.ndarray) and data.dtype != object:
        rows, lengths = data, np.full(len(data), math.prod(data.shape[1:]), np.int64)
        shapes = {data.shape[1:]}
    else:
        parts = [np.asarray(value) for value in data]
        shapes = {part.shape for part in parts}
        lengths = np.array([part.size for part in parts], np.int64)
        if field.is_ragged and not all(part.size for part in parts):
            raise DataError(f"feature {name!r} is empty in some records; a list must have a value")
        rows = np.concatenate([part.reshape(-1) for part in parts]) if parts else np.empty(0, np.int64)
    for shape in shapes:
        if len(shape) != len(field.shape) or any(
            w not in (None, h) for w, h in zip(field.shape, shape, strict=True)
        ):
            raise DataError(f"feature {name!r} must have the shape {field.shape} in each record, got {shape}")
    values = rows.reshape(-1)
    if field.dtype == "int64":
        if values.dtype.kind not in "iub" and values.size:
            raise DataError(f"feature {name!r} must be integers, got {values.dtype}")
        most = int(values.max(initial=0))
        if most > 2**63 - 1:
            raise DataError(f"feature {name!r} holds {most}, which 64 bits with a sign do not")
        if values.size and (int(values.min()) < 0 or (field.limit is not None and most >= field.limit)):
            limit = "" if field.limit is None else f" to {field.limit - 1}"
            raise DataError(f"feature {name!r} must be from 0{limit}, got {int(values.min())} to {most}")
        return Column(values.astype(np.int64), lengths)
    if values.dtype.kind not in "iubf" and values.size:
        raise DataError(f"feature {name!r} must be numbers, got {values.dtype}")
    values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise DataError(f"feature {name!r} holds NaN or infinity")
    return Column(values, lengths)


def _raw(name: str, field: Field, data: Sequence[Any]) -> Column:
    wanted: type = str if field.dtype == "string" else bytes
    for value in data:
        if not isinstance(value, wanted):
            raise DataError(f"feature {name!r} must be {field.dtype}, got {type(value).__name__}")
    try:
        parts = [value.encode() for value in data] if wanted is str else list(data)
    except UnicodeEncodeError as error:
        raise DataError(f"feature {name!r} holds half a character, which UTF-8 cannot store: {error}") from error
    lengths = np.fromiter(map(len, parts), np.int64, len(parts))
    return Column(np.frombuffer(b"".join(parts), np.uint8), lengths)
