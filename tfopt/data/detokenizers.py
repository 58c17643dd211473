"""From tokens to text, as they come, in whole characters."""

import codecs
from collections.abc import Sequence
from typing import Any, Protocol


class Tokenizer(Protocol):
    """What generation needs of a tokenizer."""

    def encode_ids(self, text: str) -> list[int]:
        """Ids of a prompt, with whatever begins a text and nothing that ends it."""

    def encode_whole(self, text: str) -> list[int]:
        """Ids of a text alone: what begins a text is not added."""

    def stream(self, prompt: Sequence[int]) -> "Detokenizer":
        """Turns the tokens after a prompt into text."""


class Detokenizer(Protocol):
    """Text of tokens that come one by one."""

    def push(self, token: int) -> str:
        """The characters that are complete now."""

    def rest(self) -> str:
        """What is left when no more tokens come."""


class ByteStream:
    """For tokenizers whose tokens are bytes: a character that spans tokens waits for its last byte.

    Args:
        piece: (token, token before) -> bytes.
        previous: the last token of the prompt.
    """

    def __init__(self, piece: Any, previous: int | None) -> None:
        self._piece, self._previous = piece, previous
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        piece = self._piece(token, self._previous)
        self._previous = token
        return self._decoder.decode(piece)

    def rest(self) -> str:
        return self._decoder.decode(b"", final=True)


class HuggingFaceTokenizer:
    """A tokenizer of the `tokenizers` package.

    Args:
        tokenizer: from `data.load_tokenizer` or `data.train_bpe`.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def encode_ids(self, text: str) -> list[int]:
        encoding = self.tokenizer.encode(text)
        ids, special = list(encoding.ids), encoding.special_tokens_mask
        while ids and special[len(ids) - 1] and len(ids) > 1:  # what closes a text has no place in a prompt
            ids.pop()
        return ids

    def encode_closed(self, text: str) -> list[int]:
        """Ids of a text that is read to its end, with whatever begins and ends it."""
        return list(self.tokenizer.encode(text).ids)

    def encode_whole(self, text: str) -> list[int]:
        """Ids of a text that names its special tokens itself."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def special_ids(self, text: str) -> list[int]:
        """Ids of the special tokens of a text."""
        marks = self.marks
        return [number for number in self.encode_whole(text) if number in marks]

    @property
    def marks(self) -> set[int]:
        """Ids of the special tokens, which no text has."""
        return {number for number, token in self.tokenizer.get_added_tokens_decoder().items() if token.special}

    def stream(self, prompt: Sequence[int]) -> "_Differences":
        return _Differences(self.tokenizer, prompt)


class _Differences:
    """Decodes a few tokens around the border with and without the new one; blanks depend on what is before."""

    def __init__(self, tokenizer: Any, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = list(prompt[-8:])
        self._shown, self._from = len(self._ids), 0

    def push(self, token: int) -> str:
        self._ids.append(token)
        return self._new(final=False)

    def rest(self) -> str:
        return self._new(final=True)

    def _new(self, final: bool) -> str:
        before = self._tokenizer.decode(self._ids[self._from : self._shown]).rstrip("�")
        after = self._tokenizer.decode(self._ids[self._from :])
        if len(after) <= len(before) or (after.endswith("�") and not final):
            return ""  # a character is not complete yet
        self._from, self._shown = self._shown, len(self._ids)
        return str(after[len(before) :])
