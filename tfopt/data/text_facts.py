"""What turns a model's numbers into answers about texts: its tokenizer, its task and the names of its classes.

They lie as members in `.keras` archives, in the metadata of TFLite files and beside SavedModels.
"""

import dataclasses
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from tfopt._base.foreign import parse_json
from tfopt._base.limits import MAX_MEMBER_BYTES
from tfopt._base.members import FACTS, LOOKUPS, PACKED, TOKENIZER
from tfopt.data.tokenizers import OnLong
from tfopt.errors import InputError, ModelFileError

TextTask = Literal["classification", "token_classification", "span", "embedding"]
OutputKind = Literal["logits", "probabilities", "independent"]
ONLY = "label"  # stands for the only output


@dataclasses.dataclass(frozen=True)
class TextFacts:
    """What a model of texts answers.

    Attributes:
        task: "classification" by one head or several, "token_classification" in the scheme IOB2, "span" of an
            answer, or "embedding" for whatever is shown as it is.
        labels: output, or "label" for the only one -> names of its classes in the order of their numbers.
        kind: what those outputs hold: "logits", "probabilities" of classes of which one is true, or "independent"
            ones of classes of which any may be.
        max_length: tokens that the model was trained with, None if that is not known.
        on_long: what happens to longer texts; see `data.tokenizers.encode`.
    """

    task: TextTask
    labels: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    kind: OutputKind = "logits"
    max_length: int | None = None
    on_long: OnLong = "error"

    def as_json(self) -> bytes:
        values = {"schema": 1, **dataclasses.asdict(self), "labels": {k: list(v) for k, v in self.labels.items()}}
        return json.dumps(values, ensure_ascii=False).encode()

    @staticmethod
    def from_json(content: bytes, source: str) -> "TextFacts":
        """The facts of a member.

        Raises:
            ModelFileError: it is damaged; `source` names it.
        """
        found = parse_json(content, source, ModelFileError)
        if not isinstance(found, dict) or found.get("schema") != 1:
            raise ModelFileError(f"{source} must describe a task with texts in schema 1, got {found!r:.80}")
        labels, length = found.get("labels"), found.get("max_length")
        choices = (("task", TextTask), ("kind", OutputKind), ("on_long", OnLong))
        wrong = [key for key, known in choices if found.get(key) not in get_args(known)]
        if (
            not isinstance(labels, dict)
            or not all(_are_names(names) for names in labels.values())
            or (found.get("task") == "token_classification" and ONLY not in labels)
        ):
            wrong.append("labels")
        if length is not None and (type(length) is not int or length < 1):
            wrong.append("max_length")
        if wrong:
            raise ModelFileError(f"{source} has a bad {wrong[0]!r}: {found.get(wrong[0])!r:.80}")
        assert isinstance(labels, dict)
        return TextFacts(
            found["task"], {key: tuple(names) for key, names in labels.items()}, found["kind"],
            max_length=length, on_long=found["on_long"],
        )  # fmt: skip


def check_labels(names: Sequence[str]) -> tuple[str, ...]:
    """Names of classes as they were given.

    Raises:
        InputError: fewer than two, or no texts, or one twice.
    """
    found = tuple(names) if not isinstance(names, str) else ()
    if len(found) < 2 or not _are_names(list(found)) or len(set(found)) < len(found):
        raise InputError(f"labels must be two names or more that differ, in the order of classes, got {names!r}")
    return found


def packed(members: Mapping[str, bytes]) -> dict[str, bytes]:
    """Those of a model's members that an exported file needs for texts."""
    found = {name: members[name] for name in (FACTS, LOOKUPS) if name in members}
    if TOKENIZER in members:
        found[PACKED] = zlib.compress(members[TOKENIZER], 9)
    return found


def unpacked(members: Mapping[str, bytes], source: str) -> dict[str, bytes]:
    """The members of an exported file as a model has them.

    Raises:
        ModelFileError: they are damaged.
    """
    found = {name: members[name] for name in (FACTS, LOOKUPS, TOKENIZER) if name in members}
    if PACKED in members:
        stream = zlib.decompressobj()
        try:
            content = stream.decompress(members[PACKED], MAX_MEMBER_BYTES)
        except zlib.error as error:
            raise ModelFileError(f"{source}: the tokenizer is damaged: {error}") from error
        if not stream.eof:
            raise ModelFileError(f"{source}: the tokenizer is cut off, or larger than {MAX_MEMBER_BYTES} bytes")
        found[TOKENIZER] = content
    return found


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)
