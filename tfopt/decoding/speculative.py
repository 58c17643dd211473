"""Speculative decoding: a few tokens are proposed cheaply, and the model checks all of them in one pass.

Leviathan et al., "Fast Inference from Transformers via Speculative Decoding", https://arxiv.org/abs/2211.17192:
a proposal is kept with probability min(1, p / q), else a token is drawn from the positive part of p - q, so that
texts are distributed as if the model had written them alone. When greedy, they are equal, as far as the runtime
computes a token alone as it does among others: integers are rounded a little otherwise, and near ties may turn.

A smaller model proposes, or the text itself: what followed its last words where they stood before (Saxena, "Prompt
Lookup Decoding", https://github.com/apoorvumang/prompt-lookup-decoding).
"""

import contextlib
from collections import abc
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from tfopt.decoding.decoder import Decoder, Session
from tfopt.decoding.generate import Choices, GenerateConfig, check_prompts, with_ends
from tfopt.decoding.sampling import pick
from tfopt.errors import InputError

LOOKUP = "lookup"
# Words that are looked for, the longest first. One alone says little, and a pass that checks nothing is cheap.
_LONGEST, _SHORTEST = 4, 2


class Proposing(Protocol):
    """Proposals for one text."""

    def propose(self, text: Choices, count: int) -> tuple[list[int], list[np.ndarray]]:
        """Up to `count` next tokens, and the distribution that each was drawn from."""

    def rewind(self, length: int) -> None:
        """Forgets what comes after the first `length` tokens."""


class Proposer(Protocol):
    """Where proposals come from.

    Attributes:
        most: tokens at a time that are worth it.
    """

    most: int

    def room(self, length: int) -> int:
        """How many more tokens than `length` it can see."""

    def check(self, decoder: Decoder) -> None:
        """Raises InputError if it has not the vocabulary of the model."""

    def open(self) -> contextlib.AbstractContextManager[Proposing]:
        """Begins a text."""


def speculate(
    decoder: Decoder,
    draft: Proposer,
    prompt: Sequence[int],
    config: GenerateConfig,
    *,
    proposals: int | None = None,
    row: int = 0,
) -> abc.Generator[int]:
    """Continues one text.

    Args:
        decoder: the model whose text it is.
        draft: what proposes.
        prompt: token ids.
        config: how.
        proposals: tokens that are proposed at a time; by default as many as are worth it.
        row: index of the text among several, which its random numbers depend on.

    Yields:
        The next token.

    Raises:
        InputError: different vocabularies, or see `generate.check_prompts`.
    """
    draft.check(decoder)
    proposals = draft.most if proposals is None else proposals
    if proposals < 1:
        raise InputError(f"proposals must be 1 or more, got {proposals}")
    config = with_ends(config, decoder)
    (ids,) = check_prompts([prompt], decoder, config)
    text = Choices(ids, config, decoder.config.vocab_size, row=row)
    with decoder.open([0]) as session, draft.open() as helper:
        if len(ids) > 1:
            session.extend(np.asarray([ids[:-1]], np.int32))
        while not text.full and len(text.tokens) < decoder.context + 1:
            base = len(text.tokens)
            room = min(decoder.context - base, draft.room(base), config.max_tokens - text.new - 1, proposals)
            for token in _round(session, helper, text, room=max(0, room)):
                if text.take(token) is None:
                    return
                yield token
                if text.full:
                    return


def _round(session: Session, helper: Proposing, text: Choices, room: int) -> list[int]:
    """Tokens that are certain after one pass of the model; at least one."""
    base = len(text.tokens)
    proposed, chances = helper.propose(text, room)
    ids = [text.tokens[-1], *proposed]
    logits = session.extend(np.asarray([ids], np.int32), every=True)[0]
    said, accepted = text.said.copy(), []
    for step, row in enumerate(logits):
        wanted = text.sampler.distribution(text.allowed(row, ahead=step), said)
        if step == len(proposed):
            accepted.append(pick(wanted, text.sampler.uniform()))
            break
        token, offered = proposed[step], chances[step]
        if text.sampler.uniform() * offered[token] < wanted[token]:
            accepted.append(token)
            said[token] = True
            continue
        left = np.maximum(wanted - offered, 0.0)
        accepted.append(pick(left if left.sum() > 0 else wanted, text.sampler.uniform()))
        break
    session.rewind(base - 1 + len(accepted))
    helper.rewind(base - 1 + len(accepted))
    return accepted


class DraftModel:
    """A smaller model with the same vocabulary."""

    most = 4

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    def room(self, length: int) -> int:
        return self._decoder.context - length

    def check(self, decoder: Decoder) -> None:
        if self._decoder.config.vocab_size != decoder.config.vocab_size:
            raise InputError(
                "the draft must have the vocabulary of the model, got "
                f"{self._decoder.config.vocab_size} and {decoder.config.vocab_size} tokens"
            )

    @contextlib.contextmanager
    def open(self) -> abc.Iterator["_Drafting"]:
        with self._decoder.open([0]) as session:
            yield _Drafting(session)


class _Drafting:
    def __init__(self, session: Session) -> None:
        self._session = session

    def propose(self, text: Choices, count: int) -> tuple[list[int], list[np.ndarray]]:
        proposed: list[int] = []
        chances: list[np.ndarray] = []
        said = text.said.copy()
        ids = text.tokens[self._session.length :]
        for step in range(count):
            logits = self._session.extend(np.asarray([ids], np.int32))[0, -1]
            chances.append(text.sampler.distribution(text.allowed(logits, ahead=step), said))
            proposed.append(pick(chances[-1], text.sampler.uniform()))
            said[proposed[-1]] = True
            ids = proposed[-1:]
        return proposed, chances

    def rewind(self, length: int) -> None:
        self._session.rewind(min(self._session.length, length))


class PromptLookup:
    """The text itself: what followed its last words where they stood before, the latest place first."""

    most = 7  # with the last token, what the pass of a file that checks several takes

    def room(self, length: int) -> int:
        return self.most

    def check(self, decoder: Decoder) -> None:
        """Its tokens are those of the text."""

    def open(self) -> contextlib.AbstractContextManager["_LookingUp"]:
        return contextlib.nullcontext(_LookingUp())


class _LookingUp:
    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}  # words -> where the token after them stands
        self._seen = 0

    def propose(self, text: Choices, count: int) -> tuple[list[int], list[np.ndarray]]:
        tokens = text.tokens
        found: list[int] = []
        if count:
            for size in range(min(_LONGEST, len(tokens)), _SHORTEST - 1, -1):
                at = self._ends.get(tuple(tokens[-size:]))
                if at is not None:
                    found = tokens[at : at + count]
                    break
        for end in range(max(self._seen, 1), len(tokens)):  # the last words have nothing after them yet
            for size in range(_SHORTEST, min(_LONGEST, end) + 1):
                self._ends[tuple(tokens[end - size : end])] = end
        self._seen = len(tokens)
        return found, [_certain(token, len(text.said)) for token in found]

    def rewind(self, length: int) -> None:
        """What was accepted is in the text, and nothing else was seen."""


def _certain(token: int, vocab: int) -> np.ndarray:
    found = np.zeros(vocab)
    found[token] = 1.0
    return found
