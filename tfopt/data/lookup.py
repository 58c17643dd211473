"""What Keras's `TextVectorization`, `StringLookup` and `IntegerLookup` do to texts and numbers; no TensorFlow.

A TFLite file has no tables of strings: the model is cut behind such a layer, and this goes with the file.
"""

import dataclasses
import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np

from tfopt._base.foreign import check_whole, parse_json
from tfopt.errors import InputError, ModelFileError

Standardize = Literal["lower_and_strip_punctuation", "lower", "strip_punctuation"]
Split = Literal["whitespace", "character"]
Encoding = Literal["one_hot", "multi_hot", "count", "tf_idf"]
_MOST_VALUES = 1 << 24
_PUNCTUATION = re.compile(rb"[!\"#$%&()\*\+,-\./:;<=>?@\[\\\]^_`{|}~\']")


@dataclasses.dataclass(frozen=True)
class Lookup:
    """One layer.

    Attributes:
        name: of the input that it reads.
        target: of the input that the model has in its place, which takes the ids.
        vocabulary: the id of each word, or number written as a text.
        unknown: the id of what is not in it; None where that is an error.
        words: a text becomes the ids of its words, rather than one id.
        standardize: what is done to a text first.
        split: what a text is split at.
        length: ids of a text, filled up with zeros or cut; None for as many as the longest has.
        integers: numbers are looked up.
        ngrams: numbers of words next to each other that are looked up together; None for single words.
        encoding: how ids become numbers for each of the vocabulary; None where the model takes ids.
        depth: how many numbers that are.
        weights: of each of them, for "tf_idf".
    """

    name: str
    target: str
    vocabulary: dict[str, int]
    unknown: int | None = None
    words: bool = False
    standardize: Standardize | None = None
    split: Split | None = None
    length: int | None = None
    integers: bool = False
    ngrams: Sequence[int] | None = None
    encoding: Encoding | None = None
    depth: int = 0
    weights: Sequence[float] | None = None

    def values(self, values: Any) -> np.ndarray:
        """What the model takes for an array of texts or numbers: `ids`, or (rows, depth) float32 encoded ones.

        Raises:
            InputError: as `ids` does.
        """
        if self.encoding is None:
            return self.ids(values)
        if self.words:
            rows = self._ids_of_texts(self._checked(values))
        else:
            ids = self.ids(values)
            if self.encoding == "one_hot":
                ids = ids[..., 0] if ids.ndim > 1 and ids.shape[-1] == 1 else ids
                return np.eye(self.depth, dtype=np.float32)[ids]
            rows = list(ids.reshape(len(ids), -1))
        counts = [np.bincount(np.array(row, int), minlength=self.depth) for row in rows]
        found = np.array(counts, np.float32).reshape(-1, self.depth)
        if self.encoding == "multi_hot":
            found = np.minimum(found, 1)
        return found if self.weights is None else found * np.array(self.weights, np.float32)

    def ids(self, values: Any) -> np.ndarray:
        """Ids of an array of texts or numbers, (rows, words) int32 for words, else of the array's shape.

        Raises:
            InputError: what is looked up is no text or number, or is not in a vocabulary without a place for it.
        """
        array = self._checked(values)
        if not self.words:
            found = [self._id(str(_text(value))) for value in array.reshape(-1)]
            return np.array(found, np.int32).reshape(array.shape)
        rows = self._ids_of_texts(array)
        length = self.length or max(map(len, rows), default=0)
        filled = [row[:length] + [0] * (length - len(row)) for row in rows]
        return np.array(filled, np.int32).reshape(len(rows), length)

    def _checked(self, values: Any) -> np.ndarray:
        array = np.asarray(values)
        if self.integers != np.issubdtype(array.dtype, np.integer):
            kind = "integers" if self.integers else "texts"
            raise InputError(f"input {self.name!r} takes {kind}, got {array.dtype}")
        return array

    def _ids_of_texts(self, array: np.ndarray) -> list[list[int]]:
        texts = array.reshape(len(array), -1)[:, 0] if len(array) else array
        return [[self._id(word) for word in self._joined(self._split(_text(text)))] for text in texts]

    def _joined(self, words: list[str]) -> list[str]:
        if self.ngrams is None:
            return words
        starts = ((size, range(len(words) - size + 1)) for size in self.ngrams)
        return [" ".join(words[start : start + size]) for size, at in starts for start in at]

    def _id(self, word: str) -> int:
        found = self.vocabulary.get(word, self.unknown)
        if found is None:
            raise InputError(
                f"input {self.name!r}: {word!r} is not in the vocabulary, which has no place for others"
            )
        return found

    def _split(self, text: str) -> list[str]:
        # As TensorFlow does, letters beyond ASCII stay as they are.
        content = text.encode()
        if self.standardize in ("lower", "lower_and_strip_punctuation"):
            content = content.lower()
        if self.standardize in ("strip_punctuation", "lower_and_strip_punctuation"):
            content = _PUNCTUATION.sub(b"", content)
        if self.split == "whitespace":
            return [word.decode() for word in content.split()]
        return list(content.decode()) if self.split == "character" else [content.decode()]


def to_json(lookups: list[Lookup]) -> bytes:
    """The member of a file."""
    values = {"schema": 1, "lookups": [dataclasses.asdict(lookup) for lookup in lookups]}
    return json.dumps(values, ensure_ascii=False).encode()


def from_json(content: bytes, source: str) -> list[Lookup]:
    """Reads what `to_json` wrote.

    Raises:
        ModelFileError: it is damaged; `source` names it.
    """
    found = parse_json(content, source, ModelFileError)
    rows = found.get("lookups") if isinstance(found, dict) and found.get("schema") == 1 else None
    if not isinstance(rows, list) or not rows:
        raise ModelFileError(f"{source} must hold lookups in schema 1, got {found!r:.80}")
    try:
        lookups = [Lookup(**row) for row in rows]
    except TypeError as error:
        raise ModelFileError(f"{source} holds a lookup with a bad key: {error}") from error
    for lookup in lookups:
        _check(lookup, source)
    return lookups


def _check(lookup: Lookup, source: str) -> None:
    words = lookup.vocabulary
    fine = {
        "name": isinstance(lookup.name, str), "target": isinstance(lookup.target, str),
        "vocabulary": isinstance(words, dict) and bool(words) and all(_is_id(i) for i in words.values()),
        "unknown": lookup.unknown is None or _is_id(lookup.unknown), "words": isinstance(lookup.words, bool),
        "standardize": lookup.standardize is None or lookup.standardize in get_args(Standardize),
        "split": lookup.split is None or lookup.split in get_args(Split),
        "integers": isinstance(lookup.integers, bool),
        "length": lookup.length is None or _is_count(lookup.length),
        "ngrams": lookup.ngrams is None or _are_all(lookup.ngrams, _is_count),
        "encoding": lookup.encoding is None or lookup.encoding in get_args(Encoding),
        "depth": lookup.encoding is None or (_is_count(lookup.depth) and _fits(lookup)),
        "weights": (lookup.weights is None) == (lookup.encoding != "tf_idf")
        and (lookup.weights is None or _are_all(lookup.weights, _is_weight, lookup.depth)),
    }  # fmt: skip
    wrong = next((name for name, right in fine.items() if not right), None)
    if wrong is not None:
        raise ModelFileError(f"{source} holds a lookup with a bad {wrong}: {getattr(lookup, wrong)!r:.80}")


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 31


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value < _MOST_VALUES


def _is_weight(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _are_all(values: Any, right: Callable[[Any], bool], count: int | None = None) -> bool:
    return isinstance(values, list | tuple) and all(map(right, values)) and count in (None, len(values))


def _fits(lookup: Lookup) -> bool:
    """Whether every id has its place; what the rest of the check refuses may not be compared."""
    ids = lookup.vocabulary.values() if isinstance(lookup.vocabulary, dict) else ()
    return all(_is_id(i) and i < lookup.depth for i in (*ids, lookup.unknown or 0))


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise InputError(f"a text must be UTF-8, got {value[:40]!r}") from error
    if isinstance(value, str | np.integer):
        check_whole(str(value), "a text")
        return str(value)
    raise InputError(f"a text was expected, got {type(value).__name__} {value!r:.40}")
