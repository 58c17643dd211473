"""Which reader reads a path."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from tfopt._base.files import existing
from tfopt._base.foreign import regular
from tfopt.data.readers.base import Columns, Piece, Source
from tfopt.data.readers.hugging_face import DatasetSource, is_dataset
from tfopt.data.readers.lines import Kind, LinesSource
from tfopt.data.readers.parquet import ParquetSource
from tfopt.errors import InputError

LINES: dict[str, Kind] = {
    ".tsv": "tsv", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".txt": "text", ".text": "text",
}  # fmt: skip
_PARQUET = (".parquet", ".pq")


def open_source(path: str | Path, text_column: str | None = None, label_column: str | None = "label") -> Source:
    """Texts of a file or folder, which are read piece by piece.

    Args:
        path: a file, by its suffix: .tsv, .csv (both with a header), .jsonl, .txt (a text per line), .parquet; or a
            folder that `datasets` of Hugging Face saved. UTF-8.
        text_column: column or JSON key of the text; None means "text" or, without one, the only column beside the
            label.
        label_column: column or JSON key of the label, or None for unlabelled text. Plain text files have no labels.

    Raises:
        MissingFileError: nothing is there.
        InputError: an unknown suffix, or a package that reads this kind is missing.
    """
    path = existing(path, "data file")
    columns = Columns(text_column, label_column)
    if is_dataset(path):
        return DatasetSource(path, columns)
    path = regular(path, "data file")
    suffix = path.suffix.lower()
    if suffix in _PARQUET:
        return ParquetSource(path, columns)
    kind = LINES.get(suffix)
    if kind is None:
        known = ", ".join(sorted([*LINES, *_PARQUET]))
        raise InputError(f"unknown kind of data file {path.name!r}: use one of {known}")
    return LinesSource(path, Columns("text", None) if kind == "text" else columns, kind)


@dataclasses.dataclass(frozen=True)
class Sources:
    """Several sources, one after another; see `readers.base.Source`."""

    parts: Sequence[Source]

    @property
    def name(self) -> str:
        return ", ".join(part.name for part in self.parts)

    @property
    def weight(self) -> int:
        return sum(part.weight for part in self.parts)

    @property
    def labelled(self) -> bool:
        return all(part.labelled for part in self.parts)

    @property
    def foreign(self) -> bool:
        return any(part.foreign for part in self.parts)

    def pieces(self) -> Iterator[Piece]:
        for part in self.parts:
            yield from part.pieces()
