"""Reads labelled texts from TSV, CSV, JSONL and plain text files."""

import csv
import dataclasses
import io
import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tfopt._base.foreign import regular
from tfopt.errors import DataError, InputError

FORMATS = {
    ".tsv": "tsv",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".txt": "text",
    ".text": "text",
}


@dataclasses.dataclass(frozen=True)
class Texts:
    """Texts of one file, in file order.

    Attributes:
        texts: the texts, stripped, none empty.
        labels: one label per text as it stands in the file, or None for unlabelled text.
        source: where they came from, for messages.
    """

    texts: list[str]
    labels: list[str] | None
    source: str

    def __len__(self) -> int:
        return len(self.texts)


def read_texts(path: str | Path, text_column: str | None = None, label_column: str | None = "label") -> Texts:
    """Reads a file by its suffix: .tsv, .csv (both with a header), .jsonl, or .txt (a text per line).

    Args:
        path: the file; UTF-8.
        text_column: column or JSON key of the text; None means "text" or, without one, the only
            column beside the label.
        label_column: column or JSON key of the label, or None for unlabelled text. Plain text files
            have no labels.

    Raises:
        MissingFileError: no such file.
        DataError: not UTF-8, no such column, a broken line, or no text at all.
        InputError: an unknown suffix.
    """
    path = regular(path, "data file")
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise InputError(f"unknown kind of data file {path.name!r}: use one of {', '.join(sorted(FORMATS))}")
    content = _decode(path)
    if kind == "text":
        rows: Iterator[tuple[int, dict[str, object]]] = _plain(content)
        text_column, label_column = "text", None
    elif kind == "jsonl":
        rows = _json_lines(content, path)
    else:
        rows = _table(content, path, kind)
    texts, labels = _collect(rows, path, text_column, label_column=label_column)
    return Texts(texts, labels, str(path))


def read_documents(path: str | Path, text_column: str | None = None) -> Texts:
    """Reads running text: a `.txt` file is one document as it stands, a row of another file is one.

    Args:
        path: the file; UTF-8.
        text_column: as for `read_texts`.

    Raises:
        MissingFileError: no such file.
        DataError: not UTF-8, no such column, a broken line, or no text at all.
        InputError: an unknown suffix.
    """
    path = regular(path, "data file")
    if FORMATS.get(path.suffix.lower()) != "text":
        return read_texts(path, text_column, None)
    content = _decode(path)
    if not content.strip():
        raise DataError(f"{path} holds no text")
    return Texts([content], None, str(path))


def label_names(train: Texts) -> list[str]:
    """The distinct labels of the training data, numbers in numeric order, words alphabetically.

    Raises:
        DataError: fewer than two labels.
    """
    assert train.labels is not None
    names = sorted(set(train.labels), key=_label_order)
    if len(names) < 2:
        raise DataError(f"{train.source}: every text has the label {names[0]!r}; a classifier needs two or more")
    return names


def label_ids(data: Texts, names: list[str]) -> list[int]:
    """The index of each label in `names`.

    Raises:
        DataError: a label that is not in `names`; counted and shown.
    """
    assert data.labels is not None
    index = {name: i for i, name in enumerate(names)}
    unknown = Counter(label for label in data.labels if label not in index)
    if unknown:
        label, count = unknown.most_common(1)[0]
        raise DataError(
            f"{data.source}: label {label!r} ({count} texts) never occurs in the training data, "
            f"which has {', '.join(map(repr, names[:10]))}"
        )
    return [index[label] for label in data.labels]


def json_rows(path: str | Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file.

    Raises:
        MissingFileError: no such file.
        DataError: not UTF-8, a line that is no JSON object, or none at all.
        InputError: another kind of file.
    """
    path = regular(path, "data file")
    if FORMATS.get(path.suffix.lower()) != "jsonl":
        raise InputError(f"examples of this task come from a .jsonl file, got {path.name!r}")
    rows = [row for _, row in _json_lines(_decode(path), path)]
    if not rows:
        raise DataError(f"{path} holds no examples")
    return rows


def _decode(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}: line {line} is not UTF-8 (byte 0x{data[error.start]:02x} at offset {error.start}); "
            "save the file as UTF-8"
        ) from error


def _plain(content: str) -> Iterator[tuple[int, dict[str, object]]]:
    for number, line in enumerate(content.split("\n"), 1):  # splitlines() also breaks at U+2028 and the like
        if line.strip():
            yield number, {"text": line}


def _json_lines(content: str, path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}: line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}: line {number} must be a JSON object, got {type(row).__name__}")
        yield number, row


def _table(content: str, path: Path, kind: str) -> Iterator[tuple[int, dict[str, object]]]:
    # In TSV files a quotation mark is text; in CSV it delimits fields.
    if kind == "tsv":
        reader = csv.reader(io.StringIO(content, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    try:
        header = next(reader, [])
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise DataError(
                    f"{path}: line {reader.line_num} has {len(row)} columns, the header has {len(header)}"
                )
            yield reader.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: {error}") from error


def _collect(
    rows: Iterator[tuple[int, dict[str, object]]],
    path: Path,
    text_column: str | None,
    label_column: str | None,
) -> tuple[list[str], list[str] | None]:
    texts, labels = [], []
    for number, row in rows:
        text_column = text_column or _find_text_column(row, label_column, path)
        for column in (text_column, label_column):
            if column is not None and column not in row:
                have = ", ".join(map(repr, row))
                raise DataError(f"{path}: line {number} has no column {column!r}; it has {have}")
        text = row[text_column]
        if not isinstance(text, str):
            raise DataError(f"{path}: line {number}: the text must be a string, got {type(text).__name__}")
        text = text.strip()
        if not text:
            raise DataError(f"{path}: line {number} has an empty text")
        texts.append(text)
        if label_column is not None:
            value = row[label_column]
            label = "" if value is None else str(value).strip()
            if not label:
                raise DataError(f"{path}: line {number} has an empty label")
            labels.append(label)
    if not texts:
        raise DataError(f"{path} holds no texts")
    return texts, labels if label_column is not None else None


def _find_text_column(row: dict[str, object], label_column: str | None, path: Path) -> str:
    others = [column for column in row if column != label_column]
    if "text" in others:
        return "text"
    if len(others) != 1:
        raise DataError(f"{path}: which column is the text? It has {', '.join(map(repr, row))}; set text_column")
    return others[0]


def _label_order(label: str) -> tuple[int, float, str]:
    try:
        number = float(label)
    except ValueError:
        number = math.nan
    return (0, number, label) if math.isfinite(number) else (1, 0.0, label)
