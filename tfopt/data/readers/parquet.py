"""Parquet files, read a group of rows at a time."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tfopt._base.foreign import regular
from tfopt.data.readers.base import Columns, Read, collect, needs, of_pieces
from tfopt.errors import DataError

_ROWS_AT_ONCE = 1 << 14


@dataclasses.dataclass(frozen=True)
class ParquetPiece:
    """One group of rows of a Parquet file; see `readers.base.Piece`."""

    path: Path
    group: int
    first: int
    weight: int
    columns: Columns

    def read(self) -> Read:
        with _opened(self.path) as file:
            wanted = [self.columns.text_of(file.schema_arrow.names, self.path), self.columns.label]
            names = [name for name in wanted if name is not None]
            missing = [name for name in names if name not in file.schema_arrow.names]
            if missing:
                have = ", ".join(map(repr, file.schema_arrow.names))
                raise DataError(f"{self.path} has no column {missing[0]!r}; it has {have}")
            return collect(self._rows(file, names), self.path, self.columns)

    def _rows(self, file: Any, names: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        number = self.first
        try:
            for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[self.group], columns=names):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
        except Exception as error:  # what is damaged fails anywhere in it
            raise DataError(f"{self.path}: group {self.group} cannot be read: {error}") from error


@dataclasses.dataclass(frozen=True)
class ParquetSource:
    """A Parquet file; see `readers.base.Source`."""

    path: Path
    columns: Columns

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def weight(self) -> int:
        (sizes,) = of_pieces(self, _sizes, [(self.path,)])
        return int(sum(sizes))

    @property
    def labelled(self) -> bool:
        return self.columns.label is not None

    @property
    def foreign(self) -> bool:
        return True

    def pieces(self) -> Iterator[ParquetPiece]:
        (sizes,) = of_pieces(self, _sizes, [(self.path,)])
        first = 0
        for group, rows in enumerate(sizes):
            yield ParquetPiece(self.path, group, first, weight=rows, columns=self.columns)
            first += rows


def _sizes(path: Path) -> list[int]:
    """Rows of each group."""
    with _opened(path) as file:
        return [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]


def _opened(path: Path) -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise needs("parquet", error) from error
    try:
        return pyarrow.parquet.ParquetFile(regular(path, "data file"))
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is not a Parquet file: {error}") from error
