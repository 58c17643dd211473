"""What the readers share: pieces of a file, and texts with labels out of their rows."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from tfopt._base.children import ChildFailedError
from tfopt._base.workers import in_children
from tfopt.errors import DataError, InputError

# What a process has before its first piece; TensorFlow is not needed.
_PRELOAD = ("numpy", "tokenizers", "tfopt.data.job")
Row = tuple[int, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which columns, or keys, of a row are wanted.

    Attributes:
        text: of the text; None means "text" or, without one, the only column beside the label.
        label: of the label, or None for unlabelled text.
    """

    text: str | None = None
    label: str | None = None

    def text_of(self, names: Any, path: str | Path) -> str:
        """The column of the text among these.

        Raises:
            DataError: there are several.
        """
        if self.text is not None:
            return self.text
        others = [name for name in names if name != self.label]
        if "text" in others:
            return "text"
        if len(others) != 1:
            raise DataError(
                f"{path}: which column is the text? It has {', '.join(map(repr, names))}; set text_column"
            )
        return str(others[0])


class Piece(Protocol):
    """A part of a source that is read alone, in any process; it can be pickled.

    Attributes:
        weight: its share of the source's `weight`.
    """

    @property
    def weight(self) -> int: ...

    def read(self) -> "Read":
        """Its texts.

        Raises:
            DataError: a broken row.
        """


class Source(Protocol):
    """Texts that are read piece by piece.

    Attributes:
        name: of the source, for messages.
        weight: of all of it, bytes or rows; for the time that is left.
        labelled: whether texts have labels.
        foreign: whether a library of others parses it, which damage may crash.
    """

    @property
    def name(self) -> str: ...
    @property
    def weight(self) -> int: ...
    @property
    def labelled(self) -> bool: ...
    @property
    def foreign(self) -> bool: ...

    def pieces(self) -> Iterator[Piece]: ...


@dataclasses.dataclass(frozen=True)
class PathSource:
    """What sources have in common that are one file or folder.

    Attributes:
        path: of it.
        columns: what is wanted of a row.
    """

    path: Path
    columns: Columns

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def labelled(self) -> bool:
        return self.columns.label is not None


def of_pieces(
    source: Source, function: Callable[..., Any], calls: Iterable[tuple[Any, ...]], *, workers: int = 1
) -> Iterator[Any]:
    """What a function returns for each call about pieces of a source; in processes apart where it is foreign.

    Raises:
        DataError: what a call raised, or the source ended a process.
    """
    try:
        yield from in_children(function, calls, workers=workers, preload=_PRELOAD, apart=source.foreign)
    except ChildFailedError as error:
        raise DataError(f"{source.name} cannot be read: {error}") from error


@dataclasses.dataclass(frozen=True)
class Read:
    """Texts of a piece in their order, and a label for each, or None."""

    texts: list[str]
    labels: list[str] | None


def collect(rows: Iterator[Row], path: str | Path, columns: Columns) -> Read:
    """The texts and labels in rows, stripped.

    Raises:
        DataError: no such column, or a text or label that is empty or of another type; the line is named.
    """
    texts, labels = [], []
    text_column = columns.text
    for number, row in rows:
        text_column = text_column or columns.text_of(row, path)
        for column in (text_column, columns.label):
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
        if columns.label is not None:
            value = row[columns.label]
            label = "" if value is None else str(value).strip()
            if not label:
                raise DataError(f"{path}: line {number} has an empty label")
            labels.append(label)
    return Read(texts, labels if columns.label is not None else None)


def wanted_columns(columns: Columns, names: Sequence[str], path: Path) -> list[str]:
    """The columns that are read, of a table that has these.

    Raises:
        DataError: it lacks one.
    """
    wanted = [columns.text_of(names, path), *([columns.label] if columns.label is not None else [])]
    missing = [name for name in wanted if name not in names]
    if missing:
        raise DataError(f"{path} has no column {missing[0]!r}; it has {', '.join(map(repr, names))}")
    return wanted


def collect_at_once(texts: list[Any], labels: list[Any] | None) -> Read | None:
    """The same of whole columns, several times as fast; None where there is anything to complain of."""
    if not set(map(type, texts)) <= {str} or (labels is not None and type(None) in set(map(type, labels))):
        return None
    stripped = [text.strip() for text in texts]
    names = None if labels is None else [str(label).strip() for label in labels]
    return Read(stripped, names) if all(stripped) and (names is None or all(names)) else None


def needs(extra: str, error: ImportError) -> InputError:
    """What to install for a format."""
    return InputError(f"this kind of data needs another package: pip install 'tfopt[{extra}]' ({error})")
