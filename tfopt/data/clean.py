"""Cleaning of texts before they are packed: options that know no language."""

import dataclasses
import functools
import hashlib
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from tfopt._base.foreign import read_text
from tfopt.errors import DataError, InputError

Form = Literal["NFC", "NFD", "NFKC", "NFKD"]
_FORMS = get_args(Form)
_WORD = re.compile(r"\w+(?:['\u2019]\w+)*")
_SPACES = re.compile(r"[ \t]{2,}")
# Characters of the categories Cc (controls), Cf (marks that are not seen), Co and Cs are removed, but for line
# ends, tabs, and the marks that join letters or turn the direction of writing, which text needs.
_KEPT = "\n\t\u200c\u200d\u200e\u200f"


@dataclasses.dataclass(frozen=True)
class Cleaning:
    """What is done to each text, in this order; nothing by default.

    Attributes:
        normalize: a Unicode normal form: NFC, NFD, NFKC or NFKD (https://unicode.org/reports/tr15); None for none.
        control: remove control characters and others that are not seen; line ends and tabs stay.
        stop_words: words that are removed, whatever their case; a word is a run of letters and digits.
        duplicates: leave texts out that came before, as they are after the rest; compared by a hash of 64 bits, of
            which eight bytes are held for each text.
    """

    normalize: Form | None = None
    control: bool = False
    stop_words: frozenset[str] = frozenset()
    duplicates: bool = False

    def __post_init__(self) -> None:
        if self.normalize is not None and self.normalize not in _FORMS:
            raise InputError(f"normalize must be one of {', '.join(_FORMS)}, got {self.normalize!r}")
        if isinstance(self.stop_words, str):
            raise InputError(f"stop_words must be a set of words, got the text {self.stop_words!r}")

    def __call__(self, text: str) -> str:
        """The text after all of it but `duplicates`; it may be empty."""
        if self.normalize:
            text = unicodedata.normalize(self.normalize, text)
        if self.control and not (text.isascii() and text.isprintable()):
            text = text.translate(_unseen())
        if self.stop_words:
            words = self._folded
            text = _WORD.sub(lambda found: "" if found[0].casefold() in words else found[0], text)
            text = _SPACES.sub(" ", text)
        return text.strip()

    @property
    def changes_texts(self) -> bool:
        return bool(self.normalize or self.control or self.stop_words)

    @functools.cached_property
    def _folded(self) -> frozenset[str]:
        return frozenset(word.casefold() for word in self.stop_words)


@functools.cache
def _unseen() -> dict[int, None]:
    """Every character that is removed."""
    return {
        code: None for code in range(0x110000)
        if unicodedata.category(chr(code)) in ("Cc", "Cf", "Co", "Cs") and chr(code) not in _KEPT
    }  # fmt: skip


def read_stop_words(path: str | Path) -> frozenset[str]:
    """The words of a file with one on each line; lines that begin with # are comments.

    Raises:
        MissingFileError: no such file.
        DataError: it is not UTF-8, or holds no words.
    """
    lines = (line.strip() for line in read_text(path, "list of stop words").splitlines())
    words = frozenset(line for line in lines if line and not line.startswith("#"))
    if not words:
        raise DataError(f"{path} holds no words")
    return words


def text_hashes(texts: Sequence[str]) -> np.ndarray:
    """64 bits of each text, uint64."""
    digest = hashlib.blake2b
    found = b"".join(digest(text.encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in texts)
    return np.frombuffer(found, np.uint64)


def first_of_each(hashes: Sequence[np.ndarray]) -> list[np.ndarray]:
    """For each piece, which of its texts did not come before, as a mask."""
    everything = np.concatenate([*hashes, np.empty(0, np.uint64)])
    first = np.zeros(everything.size, bool)
    first[np.unique(everything, return_index=True)[1]] = True
    return np.split(first, np.cumsum([part.size for part in hashes]))[:-1]
