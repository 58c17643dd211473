"""Parquet files, read a group of rows at a time."""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tfopt._base.foreign import regular
from tfopt.data.readers.base import Columns, PathSource, Read, collect, needs, of_pieces, wanted_columns
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
            names = wanted_columns(self.columns, file.schema_arrow.names, self.path)
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


class ParquetSource(PathSource):
    """A Parquet file; see `readers.base.Source`."""

    foreign = True

    @functools.cached_property
    def _rows(self) -> list[int]:
        """Of each group."""
        (sizes,) = of_pieces(self, _sizes, [(self.path,)])
        return list(sizes)

    @property
    def weight(self) -> int:
        return sum(self._rows)

    def pieces(self) -> Iterator[ParquetPiece]:
        first = 0
        for group, rows in enumerate(self._rows):
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
