"""What every runtime offers for encoder-decoders: the prompt is a source, and what follows is its target."""

import abc
from collections.abc import Sequence

import numpy as np

from tfopt.decoding.decoder import Decoder, Session
from tfopt.decoding.seq2seq_config import Seq2SeqConfig
from tfopt.errors import InputError


class Seq2SeqDecoder(Decoder):
    """An encoder-decoder on one runtime.

    Attributes:
        config: its shape.
        context: how many tokens a target can have, the one that begins it included.
        source_room: how many a source can have.
    """

    continues = False
    config: Seq2SeqConfig
    source_room: int

    @property
    def prompt_room(self) -> int:
        return self.source_room

    def fits(self, prompt: int, new: int) -> bool:
        return new + 1 <= self.context

    @abc.abstractmethod
    def open(self, pads: Sequence[int]) -> "Seq2SeqSession":
        """A session for as many texts as there are `pads`, each the padding at the left of its source."""


class Seq2SeqSession(Session):
    """Targets under way, and what their sources say; what is added first are the sources.

    Attributes:
        length: tokens of the targets so far, the one that begins them included.
    """

    _decoder: Seq2SeqDecoder

    def __init__(self, decoder: Seq2SeqDecoder, pads: Sequence[int]) -> None:
        super().__init__(decoder)
        self._pads = list(pads)
        self._has_source = False

    def extend(self, ids: np.ndarray, every: bool = False) -> np.ndarray:
        """Adds the sources, (texts, source) int32, and after that tokens of the targets; see `Session.extend`.

        Logits behind the sources are those of the targets' first tokens. Tokens that never are an answer get minus
        infinity.
        """
        if not self._has_source:
            places = np.arange(ids.shape[1])[None]
            self.read(ids, (places >= np.asarray(self._pads)[:, None]).astype(np.int32))
            ids, every = np.full((len(ids), 1), self._decoder.config.start_token, np.int32), False
        logits = super().extend(ids, every)
        barred = list(self._decoder.config.barred_tokens)
        if barred:
            logits = logits.copy()
            logits[..., barred] = -np.inf
        return logits

    def score(self, ids: np.ndarray) -> np.ndarray:
        """Logits behind every token of targets that are given, (texts, tokens) int32, as the model has them."""
        return super().extend(ids, every=True)

    def read(self, ids: np.ndarray, mask: np.ndarray) -> None:
        """Takes the sources, (texts, source) int32, with a mask that is 1 on tokens and 0 on padding.

        Raises:
            InputError: an id outside the vocabulary, more than there is room for, or sources that were given
                already.
        """
        vocab, room = self._decoder.config.vocab_size, self._decoder.source_room
        if self._has_source:
            raise InputError("this session has its sources; open another one")
        if ids.ndim != 2 or not ids.shape[1] or mask.shape != ids.shape:
            raise InputError(
                f"sources and mask must be of one shape (texts, tokens), got {ids.shape} and {mask.shape}"
            )
        if ids.min() < 0 or ids.max() >= vocab:
            raise InputError(f"token id must be in [0, {vocab}), got {ids.min() if ids.min() < 0 else ids.max()}")
        if ids.shape[1] > room:
            raise InputError(f"a source of {ids.shape[1]} tokens is longer than {room}; shorten it")
        if not mask.any(axis=1).all():
            raise InputError("a source has no token that its mask shows")
        self._read(np.ascontiguousarray(ids, np.int32), np.ascontiguousarray(mask, np.int32))
        self._has_source = True

    @abc.abstractmethod
    def _read(self, ids: np.ndarray, mask: np.ndarray) -> None:
        """Computes what targets take from checked sources."""
