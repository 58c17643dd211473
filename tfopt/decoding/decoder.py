"""What every runtime offers to the decoding loop: sessions that keep keys and values of a text."""

import abc
import typing
from collections.abc import Mapping, Sequence
from typing import Protocol, Self

import numpy as np

from tfopt.errors import InputError

if typing.TYPE_CHECKING:
    from tfopt.decoding.generate import Choices


class Vocabulary(Protocol):
    """What the loop needs to know of a model."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def end_tokens(self) -> tuple[int, ...]: ...


class Decoder(abc.ABC):
    """A model that generates, on one runtime.

    Attributes:
        config: its shape.
        context: how many tokens a text can have, prompt included.
        continues: answers continue the prompt; else they are texts of their own, with room of their own.
    """

    continues = True
    config: Vocabulary
    context: int

    @abc.abstractmethod
    def open(self, pads: Sequence[int]) -> "Session":
        """A session for as many texts as there are `pads`, each the padding at the left of its text.

        Raises:
            InputError: the runtime takes fewer texts at a time.
        """

    def swap(self, values: Mapping[str, np.ndarray]) -> None:
        """Gives weights other values, by path, as `compress.adapters.Adapters.use` returns them.

        Raises:
            InputError: the weights are in a file, or one is not there.
        """
        raise InputError("this runtime has its weights from a file: export each model to one of its own")

    @property
    def prompt_room(self) -> int:
        """The most tokens of a prompt."""
        return self.context

    def fits(self, prompt: int, new: int) -> bool:
        """Whether so many new tokens fit behind a prompt of so many."""
        return prompt + new <= self.context

    @property
    def rows(self) -> int | None:
        """The most texts of one session, or None for any number."""
        return None


class OneTextDecoder(Decoder):
    """A runtime that takes one text at a time, without padding."""

    @property
    def rows(self) -> int:
        return 1

    def open(self, pads: Sequence[int]) -> "Session":
        if len(pads) != 1 or any(pads):
            raise InputError(f"this runtime takes one text at a time without padding, got {len(pads)}")
        return self.begin()

    @abc.abstractmethod
    def begin(self) -> "Session":
        """A session for a text."""


class Session(abc.ABC):
    """Texts under way: their keys and values.

    Attributes:
        length: slots in use; text and padding of every row.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self.length = 0

    def extend(self, ids: np.ndarray, every: bool = False) -> np.ndarray:
        """Adds tokens.

        Args:
            ids: (texts, new) int32.
            every: logits at each new token instead of the last one only.

        Returns:
            Logits (texts, new or 1, vocab) float32.

        Raises:
            InputError: an id outside the vocabulary, or more tokens than the context holds.
        """
        vocab, room = self._decoder.config.vocab_size, self._decoder.context - self.length
        if ids.ndim != 2 or not ids.shape[1]:
            raise InputError(f"ids must be of shape (texts, new) with 1 new or more, got {ids.shape}")
        if ids.min() < 0 or ids.max() >= vocab:
            wrong = ids.min() if ids.min() < 0 else ids.max()
            raise InputError(f"token id must be in [0, {vocab}), got {wrong}")
        if ids.shape[1] > room:
            raise InputError(
                f"{ids.shape[1]} more tokens do not fit: {self.length} of {self._decoder.context} are in use"
            )
        logits = self._extend(np.ascontiguousarray(ids, np.int32), every)
        self.length += ids.shape[1]
        return logits

    def rewind(self, length: int) -> None:
        """Forgets what comes after the first `length` slots.

        Raises:
            InputError: fewer are in use.
        """
        if not 0 <= length <= self.length:
            raise InputError(f"length must be in [0, {self.length}], got {length}")
        self.length = length

    @abc.abstractmethod
    def _extend(self, ids: np.ndarray, every: bool) -> np.ndarray:
        """Runs the model on checked ids, from slot `self.length` on."""

    @property
    @abc.abstractmethod
    def cache_bytes(self) -> int:
        """What keys and values take now."""

    @abc.abstractmethod
    def close(self) -> None:
        """Frees keys and values."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class LoopSession(Session):
    """A session on a runtime that makes several tokens in one call."""

    @abc.abstractmethod
    def generate(self, texts: "Sequence[Choices]", alive: Sequence[bool], count: int) -> np.ndarray:
        """Up to `count` next tokens (texts, steps) of texts whose last token is not yet added; -1 after an end."""
