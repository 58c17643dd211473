"""Folders that `datasets` of Hugging Face saved (`save_to_disk`), mapped into memory and read in slices."""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tfopt.data.readers.base import Columns, PathSource, Read, collect, needs, of_pieces, wanted_columns
from tfopt.errors import DataError

_ROWS_AT_ONCE = 1 << 14


@dataclasses.dataclass(frozen=True)
class DatasetPiece:
    """A slice of a dataset; see `readers.base.Piece`."""

    path: Path
    start: int
    stop: int
    columns: Columns

    @property
    def weight(self) -> int:
        return self.stop - self.start

    def read(self) -> Read:
        data = _opened(self.path)
        names = wanted_columns(self.columns, data.column_names, self.path)
        try:
            found = data.select_columns(names)[self.start : self.stop]
        except Exception as error:  # what is damaged fails anywhere in it
            raise DataError(f"{self.path}: rows {self.start} to {self.stop} cannot be read: {error}") from error
        words = {name: getattr(data.features[name], "names", None) for name in found}
        rows = (
            {name: _word(values[i], words[name]) for name, values in found.items()}
            for i in range(min(map(len, found.values()), default=0))
        )
        return collect(enumerate(rows, self.start + 1), self.path, self.columns)


def _word(value: Any, names: list[str] | None) -> Any:
    """A value, or the name of the class that it is the number of."""
    return names[value] if names is not None and isinstance(value, int) and 0 <= value < len(names) else value


class DatasetSource(PathSource):
    """A saved dataset; see `readers.base.Source`."""

    foreign = True

    @functools.cached_property
    def weight(self) -> int:
        (rows,) = of_pieces(self, rows_of, [(self.path,)])
        return int(rows)

    def pieces(self) -> Iterator[DatasetPiece]:
        for start in range(0, self.weight, _ROWS_AT_ONCE):
            stop = min(start + _ROWS_AT_ONCE, self.weight)
            yield DatasetPiece(self.path, start, stop, columns=self.columns)


def is_dataset(path: Path) -> bool:
    """Whether a folder is one that `save_to_disk` wrote."""
    return path.is_dir() and ((path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file())


def rows_of(path: Path) -> int:
    """How many rows a saved dataset has.

    Raises:
        DataError: it cannot be opened.
    """
    return len(_opened(path))


def _opened(path: Path) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise needs("datasets", error) from error
    if (path / "dataset_dict.json").is_file():
        parts = sorted(p.name for p in path.iterdir() if p.is_dir())
        raise DataError(f"{path} holds several datasets; choose one of its folders: {', '.join(parts)}")
    try:
        return datasets.load_from_disk(str(path))
    except Exception as error:  # what is damaged fails anywhere in it
        raise DataError(f"{path} is not a dataset that can be read: {error}") from error
