"""Files of lines: TSV, CSV, JSONL and plain text, cut at the ends of rows into pieces that are read alone."""

import csv
import dataclasses
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

import pydantic_core

from tfopt._base.foreign import regular
from tfopt._base.limits import MAX_TEXT_BYTES
from tfopt.data.readers.base import Columns, PathSource, Read, Row, collect, collect_at_once
from tfopt.errors import DataError

Kind = Literal["tsv", "csv", "jsonl", "text"]
_PIECE_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"
# A field in quotation marks, also one that is not closed: a quotation mark is special only where a field begins.
_QUOTED = re.compile(rb'(?:\A|(?<=[,\n\r]))"[^"]*(?:""[^"]*)*("?)')


@dataclasses.dataclass(frozen=True)
class LinesPiece:
    """Whole rows of a file.

    Attributes:
        path: the file.
        kind: its format.
        start: its first byte.
        size: its bytes.
        line: number of its first line, from 1.
        header: names of the columns of a table.
        columns: what is wanted.
        headed: whether the first row is the header.
    """

    path: Path
    kind: Kind
    start: int
    size: int
    line: int
    header: tuple[str, ...]
    columns: Columns
    headed: bool = False

    @property
    def weight(self) -> int:
        return self.size

    def read(self) -> Read:
        content = self._content()
        found = _AT_ONCE[self.kind](content, self)
        # Whatever is wrong is found again row by row, and named.
        return found if found is not None else collect(_ROWS[self.kind](content, self), self.path, self.columns)

    def rows(self) -> Iterator[Row]:
        """Number of the line, and the values by name."""
        return _ROWS[self.kind](self._content(), self)

    def _content(self) -> str:
        with self.path.open("rb") as handle:
            handle.seek(self.start)
            content = handle.read(self.size)
        return decode(content, self.path, self.line, offset=self.start)


@dataclasses.dataclass(frozen=True)
class LinesSource(PathSource):
    """A file of lines; see `readers.base.Source`."""

    kind: Kind
    foreign = False

    @property
    def weight(self) -> int:
        return self.path.stat().st_size

    def pieces(self) -> Iterator[LinesPiece]:
        """Pieces of about a megabyte.

        Raises:
            DataError: a row that is larger than any that is read.
        """
        with regular(self.path, "data file").open("rb") as handle:
            start = len(_BOM) if handle.read(len(_BOM)) == _BOM else 0
            handle.seek(start)
            line = 1
            header: tuple[str, ...] = ()
            for content in _cut(handle, self.path, self.kind):
                piece = LinesPiece(
                    self.path, self.kind, start, size=len(content), line=line, header=header, columns=self.columns
                )
                if self.kind in ("tsv", "csv") and not header:
                    header = self._header(content)
                    piece = dataclasses.replace(piece, header=header, headed=True)
                yield piece
                start, line = start + len(content), line + content.count(b"\n")

    def _header(self, content: bytes) -> tuple[str, ...]:
        try:
            found = tuple(next(_reader(decode(content, self.path, 1, offset=0), self.kind), []))
        except csv.Error as error:
            raise DataError(f"{self.path}: line 1: {error}") from error
        twice = [name for name in found if found.count(name) > 1]
        if twice:
            raise DataError(f"{self.path} has two columns called {twice[0]!r}")
        return found


def _cut(handle: BinaryIO, path: Path, kind: Kind) -> Iterator[bytes]:
    """The content in pieces that end where a row does."""
    kept = b""
    while read := handle.read(_PIECE_BYTES):
        kept += read
        end = _safe_cut(kept) if kind == "csv" else kept.rfind(b"\n") + 1
        if end:
            yield kept[:end]
            kept = kept[end:]
        elif len(kept) > MAX_TEXT_BYTES:
            raise DataError(f"{path} has a row of more than {MAX_TEXT_BYTES:,} bytes; is a quotation mark open?")
    if kept:
        yield kept


def _safe_cut(content: bytes) -> int:
    """Where the last row of CSV that is whole ends; line ends in quotation marks end no row."""
    if b'"' not in content:
        return content.rfind(b"\n") + 1
    gap, found = 0, 0
    for quoted in _QUOTED.finditer(content):
        found = content.rfind(b"\n", gap, quoted.start()) + 1 or found
        gap = quoted.end()
        if gap == len(content):  # perhaps the first of two quotation marks
            return found
    return content.rfind(b"\n", gap) + 1 or found


def decode(content: bytes, path: Path, line: int, *, offset: int) -> str:
    """Text of a part of a file.

    Args:
        content: bytes in UTF-8.
        path: of the file, for messages.
        line: number of the first line.
        offset: of the first byte.

    Raises:
        DataError: it is not UTF-8; the line is named.
    """
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        at = line + content.count(b"\n", 0, error.start)
        raise DataError(
            f"{path}: line {at} is not UTF-8 (byte 0x{content[error.start]:02x} at offset "
            f"{offset + error.start}); save the file as UTF-8"
        ) from error


def _plain(content: str, piece: LinesPiece) -> Iterator[Row]:
    for number, line in enumerate(content.split("\n"), piece.line):  # splitlines() also breaks at U+2028
        if line.strip():
            yield number, {"text": line}


def _json_lines(content: str, piece: LinesPiece) -> Iterator[Row]:
    for number, line in enumerate(content.split("\n"), piece.line):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{piece.path}: line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{piece.path}: line {number} must be a JSON object, got {type(row).__name__}")
        yield number, row


def _reader(content: str, kind: str) -> Any:
    # In TSV files a quotation mark is text; in CSV it delimits fields.
    if kind == "tsv":
        return csv.reader(io.StringIO(content, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
    return csv.reader(io.StringIO(content, newline=""), strict=True)


def _table(content: str, piece: LinesPiece) -> Iterator[Row]:
    reader, before, header = _reader(content, piece.kind), piece.line - 1, piece.header
    try:
        if piece.headed:
            next(reader, [])
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise DataError(
                    f"{piece.path}: line {before + reader.line_num} has {len(row)} columns, "
                    f"the header has {len(header)}"
                )
            yield before + reader.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise DataError(f"{piece.path}: line {before + reader.line_num}: {error}") from error


def _plain_at_once(content: str, piece: LinesPiece) -> Read | None:
    return collect_at_once([line for line in content.split("\n") if line and not line.isspace()], None)


def _json_at_once(content: str, piece: LinesPiece) -> Read | None:
    """All lines as one list, which the parser reads without coming back to Python."""
    lines = [line for line in content.split("\n") if line and not line.isspace()]
    if not lines or not all(line[0] == "{" and line[-1] == "}" for line in lines) or "},{" in content:
        return None
    try:
        rows = pydantic_core.from_json("[" + ",\n".join(lines) + "]", cache_strings="keys")
        if len(rows) != len(lines) or set(map(type, rows)) != {dict}:
            return None
        text = piece.columns.text_of(rows[0], piece.path)
        texts = [row[text] for row in rows]
        labels = None if piece.columns.label is None else [row[piece.columns.label] for row in rows]
    except (ValueError, RecursionError, KeyError):
        return None
    return collect_at_once(texts, labels)


def _table_at_once(content: str, piece: LinesPiece) -> Read | None:
    try:
        rows = [row for row in _reader(content, piece.kind) if row]
        del rows[: 1 if piece.headed else 0]
        if set(map(len, rows)) - {len(piece.header)}:
            return None
        text = piece.header.index(piece.columns.text_of(piece.header, piece.path))
        label = None if piece.columns.label is None else piece.header.index(piece.columns.label)
    except (csv.Error, ValueError):
        return None
    return collect_at_once([row[text] for row in rows], None if label is None else [row[label] for row in rows])


_AT_ONCE: dict[Kind, Callable[[str, LinesPiece], Read | None]] = {
    "tsv": _table_at_once, "csv": _table_at_once, "jsonl": _json_at_once, "text": _plain_at_once,
}  # fmt: skip
_ROWS: dict[Kind, Callable[[str, LinesPiece], Iterator[Row]]] = {
    "tsv": _table, "csv": _table, "jsonl": _json_lines, "text": _plain,
}  # fmt: skip
