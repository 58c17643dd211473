"""One block of a pack: texts that are read, cleaned, turned into ids, and laid out as records of every shard.

A block depends on nothing but the job, its number and its piece of the source, so that blocks are made in any
process, on any machine, in any order, and come out the same.
"""

import dataclasses
import functools
from collections import Counter
from typing import Any, Literal, get_args

import numpy as np

from tfopt.data.clean import Cleaning, text_hashes
from tfopt.data.packing import pack_sequences
from tfopt.data.readers.base import Piece, Read
from tfopt.data.readers.texts import Texts, label_ids
from tfopt.data.records.fields import Column, Field, columns_of
from tfopt.data.records.manifest import COMPRESSIONS
from tfopt.data.records.write import encode_block
from tfopt.data.tokenizers import OnLong, encode, parse_tokenizer
from tfopt.errors import InputError

Layout = Literal["tokens", "sequences", "text"]


@dataclasses.dataclass(frozen=True)
class PackJob:
    """What is done with each text; it can be pickled.

    Attributes:
        source: name of the texts, for messages.
        layout: "tokens" is one record for each text, "sequences" several short texts in each record, "text" the
            text itself.
        tokenizer: content of a `tokenizer.json`; None where the layout is "text".
        labels: names of the classes, or None.
        max_length: most tokens of a text, and of a record.
        on_long: what happens to longer texts.
        shards: files to write.
        seed: of the order.
        compression: "" or "GZIP".
        cleaning: of each text.
    """

    source: str
    layout: Layout
    tokenizer: str | None
    labels: list[str] | None
    max_length: int = 128
    on_long: OnLong = "error"
    shards: int = 1
    seed: int = 0
    compression: str = ""
    cleaning: Cleaning = dataclasses.field(default_factory=Cleaning)

    def __post_init__(self) -> None:
        if self.layout not in get_args(Layout):
            raise InputError(f"layout must be tokens, sequences or text, got {self.layout!r}")
        if self.seed < 0:
            raise InputError(f"seed must be 0 or more, got {self.seed}")
        for name in ("max_length", "shards"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.on_long not in get_args(OnLong):
            raise InputError(f"on_long must be error, truncate or drop, got {self.on_long!r}")
        if self.compression not in COMPRESSIONS:
            raise InputError(f"compression must be '' or 'GZIP', got {self.compression!r}")
        if self.layout == "sequences" and self.labels is not None:
            raise InputError("records of several texts have no labels: leave the label column out")

    @property
    def fields(self) -> dict[str, Field]:
        """What a record holds."""
        found = {"text": Field("string")} if self.layout == "text" else {"input_ids": Field("int64", (None,))}
        if self.layout == "sequences":
            found["segment_lengths"] = Field("int64", (None,))
        if self.labels is not None:
            found["label"] = Field("int64", (), len(self.labels))
        return found


@dataclasses.dataclass(frozen=True)
class Surveyed:
    """What a first look at a piece found: labels with their counts, and a hash of each text if that is wanted."""

    labels: Counter[str]
    hashes: np.ndarray | None


@dataclasses.dataclass
class Counts:
    """What goes into the manifest, of one block or of all so far."""

    texts: int = 0
    tokens: int = 0
    max_length: int = 0
    too_long: int = 0
    longest: int = 0
    class_counts: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    cleaned: Counter[str] = dataclasses.field(default_factory=Counter)

    def add(self, other: "Counts") -> None:
        """Takes in those of another block."""
        self.texts += other.texts
        self.tokens += other.tokens
        self.too_long += other.too_long
        self.max_length = max(self.max_length, other.max_length)
        self.longest = max(self.longest, other.longest)
        size = max(self.class_counts.size, other.class_counts.size)
        ours, theirs = (np.pad(c, (0, size - c.size)) for c in (self.class_counts, other.class_counts))
        self.class_counts = ours + theirs
        self.cleaned += other.cleaned

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            **dataclasses.asdict(self),
            "class_counts": self.class_counts.tolist(),
            "cleaned": dict(self.cleaned),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Counts":
        """The counts of `to_dict`."""
        counts = np.array(values["class_counts"], np.int64)
        return cls(**{**values, "class_counts": counts, "cleaned": Counter(values["cleaned"])})


@dataclasses.dataclass(frozen=True)
class Block:
    """Records of a piece: the number of a shard, how many there are, and their bytes; and what they count."""

    parts: list[tuple[int, int, bytes]]
    counts: Counts


def survey(job: PackJob, piece: Piece, hashed: bool) -> Surveyed:
    """Reads a piece for its labels, and for hashes of its texts as they are after cleaning if they are wanted."""
    read = piece.read()
    hashes = text_hashes([job.cleaning(text) for text in read.texts]) if hashed else None
    return Surveyed(Counter(read.labels or ()), hashes)


def make_block(job: PackJob, number: int, piece: Piece, kept: np.ndarray | None = None) -> Block:
    """The records of one piece.

    Args:
        job: what is done.
        number: of the block; the order of its records depends on it.
        piece: of the source.
        kept: which of its texts stay, as a mask; None for all.

    Raises:
        DataError: a broken row, an unknown label, or texts that are too long.
    """
    read = piece.read()
    counts = Counts(texts=len(read.texts))
    texts, labels = _cleaned(job, read, kept, counts=counts)
    if not texts:
        return Block([], counts)
    # What is shuffled early need not be gathered later; sequences are, when they share records.
    order = np.random.default_rng((job.seed, number)).permutation(len(texts)).tolist()
    texts, labels = [texts[i] for i in order], None if labels is None else [labels[i] for i in order]
    ids = None
    if labels is not None and job.labels is not None:
        ids = np.array(label_ids(Texts(texts, labels, job.source), job.labels), np.int64)
    if job.layout == "text":
        columns = columns_of({"text": Field("string")}, {"text": texts})
    else:
        columns, chosen = _tokens(job, texts, counts)
        ids = None if ids is None else ids[chosen]
    if ids is not None:
        counts.class_counts = np.bincount(ids, minlength=len(job.labels or ()))
        columns["label"] = Column(ids, np.ones(ids.size, np.int64))
    if not next(iter(columns.values())).lengths.size:
        return Block([], counts)
    parts = encode_block(
        job.fields, columns, shards=job.shards, key=(job.seed, number), compression=job.compression,
        shuffle=job.layout == "sequences",
    )  # fmt: skip
    return Block(parts, counts)


def _cleaned(
    job: PackJob, read: Read, kept: np.ndarray | None, *, counts: Counts
) -> tuple[list[str], list[str] | None]:
    texts, labels = read.texts, read.labels
    if not job.cleaning.changes_texts and kept is None:
        return texts, labels
    texts = [job.cleaning(text) for text in texts]
    stay = np.fromiter(map(bool, texts), bool, len(texts))
    counts.cleaned["empty"] += int((~stay).sum())
    if kept is not None:
        counts.cleaned["duplicate"] += int((stay & ~kept).sum())
        stay &= kept
    rows = np.flatnonzero(stay).tolist()
    return [texts[i] for i in rows], None if labels is None else [labels[i] for i in rows]


def _tokens(job: PackJob, texts: list[str], counts: Counts) -> tuple[dict[str, Column], np.ndarray]:
    """Columns of ids, and which texts they are of."""
    assert job.tokenizer is not None
    encoded = encode(
        _tokenizer(job.tokenizer), texts, job.max_length, on_long=job.on_long, source=job.source, some=False
    )
    counts.too_long, counts.longest = encoded.too_long, encoded.longest
    counts.tokens = int(encoded.lengths.sum())
    if job.layout == "sequences" and encoded.kept.size:
        columns = pack_sequences(encoded.tokens, encoded.lengths, job.max_length)
    else:
        columns = {"input_ids": Column(encoded.tokens, encoded.lengths)}
        if job.layout == "sequences":
            columns["segment_lengths"] = Column(encoded.lengths, encoded.lengths)
    counts.max_length = int(columns["input_ids"].lengths.max(initial=0))
    return columns, encoded.kept


@functools.lru_cache(maxsize=1)
def _tokenizer(content: str) -> Any:
    return parse_tokenizer(content, "the tokenizer of a pack")
