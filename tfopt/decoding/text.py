"""From tokens to text, as they come: characters whole, stop strings held back until they are none."""

import codecs
from collections.abc import Sequence
from typing import Any, Protocol


class Tokenizer(Protocol):
    """What generation needs of a tokenizer."""

    def encode_ids(self, text: str) -> list[int]:
        """Ids of a prompt, with whatever begins a text and nothing that ends it."""

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


class StopStrings:
    """Lets text through up to the first stop string, holding back what may become one.

    Args:
        stop: the strings; none of them empty.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop, self._held = tuple(stop), ""
        self.found = False

    def push(self, text: str) -> str:
        """What can be shown now."""
        if self.found:
            return ""
        self._held += text
        places = [self._held.find(s) for s in self._stop]
        hits = [place for place in places if place >= 0]
        if hits:
            self.found = True
            shown, self._held = self._held[: min(hits)], ""
            return shown
        keep = max((self._overlap(s) for s in self._stop), default=0)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def rest(self) -> str:
        """What was held back, since no more text comes."""
        shown, self._held = self._held, ""
        return shown

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the text that begins a stop string."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
