"""All texts of a file at once, and the classes that their labels name."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tfopt._base.foreign import regular
from tfopt.data.readers.base import Columns, Piece, Read, of_pieces
from tfopt.data.readers.lines import LinesSource, decode
from tfopt.data.readers.open import LINES, open_source
from tfopt.errors import DataError, InputError

_AT_ONCE = 1 << 14


@dataclasses.dataclass(frozen=True)
class Texts:
    """Texts of one file, in file order; a `readers.base.Source`.

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

    @property
    def name(self) -> str:
        return self.source

    @property
    def weight(self) -> int:
        return len(self.texts)

    @property
    def labelled(self) -> bool:
        return self.labels is not None

    @property
    def foreign(self) -> bool:
        return False

    def pieces(self) -> "Iterator[Texts]":
        for start in range(0, len(self.texts), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            labels = None if self.labels is None else self.labels[part]
            yield dataclasses.replace(self, texts=self.texts[part], labels=labels)

    def read(self) -> Read:
        return Read(self.texts, self.labels)


def read_texts(path: str | Path, text_column: str | None = None, label_column: str | None = "label") -> Texts:
    """Reads all of a file; arguments are those of `readers.open.open_source`.

    Raises:
        MissingFileError: no such file.
        DataError: not UTF-8, no such column, a broken line, or no text at all.
        InputError: an unknown suffix.
    """
    source = open_source(path, text_column, label_column)
    texts: list[str] = []
    labels: list[str] = []
    for found in of_pieces(source, read_piece, ((piece,) for piece in source.pieces())):
        texts += found.texts
        labels += found.labels or []
    if not texts:
        raise DataError(f"{path} holds no texts")
    return Texts(texts, labels if source.labelled else None, str(path))


def joined(parts: Sequence[Texts]) -> Texts:
    """Texts one after another."""
    if len(parts) == 1:
        return parts[0]
    labels = [label for part in parts for label in part.labels or []]
    return Texts(
        [text for part in parts for text in part.texts], labels or None, ", ".join(part.source for part in parts)
    )


def read_piece(piece: Piece) -> Read:
    """The texts of a piece, to be called in any process."""
    return piece.read()


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
    path = Path(path)
    if LINES.get(path.suffix.lower()) != "text":
        return read_texts(path, text_column, None)
    content = decode(regular(path, "data file").read_bytes(), path, 1, offset=0).removeprefix("\ufeff")
    if not content.strip():
        raise DataError(f"{path} holds no text")
    return Texts([content], None, str(path))


def label_names(train: Texts) -> list[str]:
    """The distinct labels of the training data, numbers in numeric order, words alphabetically.

    Raises:
        DataError: fewer than two labels.
    """
    assert train.labels is not None
    return distinct_labels(train.labels, train.source)


def distinct_labels(labels: Iterable[str], source: str) -> list[str]:
    """The same of the labels alone."""
    names = sorted(set(labels), key=_label_order)
    if len(names) < 2:
        found = repr(names[0]) if names else "none"
        raise DataError(f"{source}: every text has the label {found}; a classifier needs two or more")
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
    if LINES.get(path.suffix.lower()) != "jsonl":
        raise InputError(f"examples of this task come from a .jsonl file, got {path.name!r}")
    rows = [row for piece in LinesSource(path, Columns(), "jsonl").pieces() for _, row in piece.rows()]
    if not rows:
        raise DataError(f"{path} holds no examples")
    return rows


def _label_order(label: str) -> tuple[int, float, str]:
    try:
        number = float(label)
    except ValueError:
        number = math.nan
    return (0, number, label) if math.isfinite(number) else (1, 0.0, label)
