"""The loop: prompts in, tokens out, one at a time."""

import dataclasses
from collections import abc
from collections.abc import Sequence

import numpy as np

from tfopt.decoding.decoder import Decoder, LoopSession, Session
from tfopt.decoding.sampling import Sampler, SamplingConfig
from tfopt.errors import InputError

# Tokens that a runtime with a loop of its own makes at a time: few enough to stream, enough to pay for the call.
_CHUNK = 16


@dataclasses.dataclass(frozen=True)
class GenerateConfig(SamplingConfig):
    """How a text is continued.

    Attributes:
        max_tokens: most new tokens; the context may end a text earlier.
        min_tokens: new tokens before any stop token may come.
        stop_tokens: ids that end a text, and are not part of it; None for those that the model ends with.
        stop: strings that end a text; they are not part of it.
        truncate: keep only the end of prompts that are longer than the context, instead of an error; a quarter of
            the context, or `max_tokens` if that is less, is left for the answer.
    """

    max_tokens: int = 128
    min_tokens: int = 0
    stop_tokens: tuple[int, ...] | None = None
    stop: tuple[str, ...] = ()
    truncate: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_tokens < 1:
            raise InputError(f"max_tokens must be 1 or more, got {self.max_tokens}")
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise InputError(f"min_tokens must be in [0, {self.max_tokens}] (max_tokens), got {self.min_tokens}")
        if isinstance(self.stop, str) or not all(self.stop):
            raise InputError(f"stop must be a tuple of strings that are not empty, got {self.stop!r}")


def check_prompts(prompts: Sequence[Sequence[int]], decoder: Decoder, config: GenerateConfig) -> list[list[int]]:
    """The prompts as they are continued.

    Raises:
        InputError: none, an empty one, an id out of range, or one that is longer than the context.
    """
    if not prompts:
        raise InputError("prompts must not be empty")
    vocab, checked = decoder.config.vocab_size, []
    for prompt in prompts:
        ids = [int(i) for i in prompt]
        if not ids:
            raise InputError("the prompt has no tokens; give at least the token that begins every text")
        wrong = next((i for i in ids if not 0 <= i < vocab), None)
        if wrong is not None:
            raise InputError(f"token id must be in [0, {vocab}), got {wrong}")
        room = decoder.prompt_room
        if len(ids) > room:
            if not config.truncate:
                raise InputError(
                    f"the prompt has {len(ids)} tokens, the context holds {room}; shorten it, or set "
                    "truncate to keep its end"
                )
            spare = min(config.max_tokens, max(1, room // 4)) if decoder.continues else 0
            ids = ids[len(ids) - room + spare :]
        checked.append(ids)
    return checked


def with_ends(config: GenerateConfig, decoder: Decoder) -> GenerateConfig:
    """The configuration with the model's own stop tokens where it names none."""
    if config.stop_tokens is not None:
        return config
    return dataclasses.replace(config, stop_tokens=decoder.config.end_tokens)


class Choices:
    """Chooses the tokens of one text, and knows when it ends."""

    def __init__(self, prompt: Sequence[int], config: GenerateConfig, vocab: int, row: int = 0) -> None:
        self.config, self.tokens = config, list(prompt)
        self.new = 0
        self.sampler = Sampler(config, row)
        self.said = np.zeros(vocab, bool)
        self.said[np.asarray(self.tokens, np.int64)] = True
        wrong = next((t for t in config.stop_tokens or () if not 0 <= t < vocab), None)
        if wrong is not None:
            raise InputError(f"stop token must be in [0, {vocab}), got {wrong}")

    def allowed(self, logits: np.ndarray, ahead: int = 0) -> np.ndarray:
        """Logits without the stop tokens that may not come yet."""
        stops = self.config.stop_tokens or ()
        if self.new + ahead >= self.config.min_tokens or not stops:
            return logits
        logits = logits.copy()
        logits[list(stops)] = -np.inf
        return logits

    def next(self, logits: np.ndarray) -> int | None:
        """The next token, or None if the text ends before it."""
        return self.take(self.sampler.choose(self.allowed(logits), self.said))

    def take(self, token: int) -> int | None:
        """Adds a token that was chosen; None if it ends the text."""
        if token in (self.config.stop_tokens or ()) and self.new >= self.config.min_tokens:
            return None
        self.new += 1
        self.tokens.append(token)
        self.said[token] = True
        return token

    @property
    def full(self) -> bool:
        """Whether no more tokens were asked for."""
        return self.new >= self.config.max_tokens


class Texts:
    """Several texts that are continued at once.

    Args:
        decoder: the model.
        prompts: token ids of each prompt; they may differ in length.
        config: how.
        first: index of the first text, which its random numbers depend on.

    Raises:
        InputError: see `check_prompts`.
    """

    def __init__(
        self, decoder: Decoder, prompts: Sequence[Sequence[int]], config: GenerateConfig, first: int = 0
    ) -> None:
        config = with_ends(config, decoder)
        checked = check_prompts(prompts, decoder, config)
        self._decoder, self._config = decoder, config
        self._pads = [max(map(len, checked)) - len(ids) for ids in checked]
        self._ids = np.asarray([[0] * pad + row for pad, row in zip(self._pads, checked, strict=True)], np.int32)
        self.rows = [
            Choices(row if decoder.continues else (), config, decoder.config.vocab_size, row=first + i)
            for i, row in enumerate(checked)
        ]
        self._alive = [True] * len(checked)

    def end(self, row: int) -> None:
        """Asks for no more tokens of a text."""
        self._alive[row] = False

    def steps(self) -> abc.Generator[list[int | None]]:
        """Yields the next token of each text, None for texts that have ended.

        Keys and values are freed when the iterator ends or is closed.
        """
        with self._decoder.open(self._pads) as session:
            yield from self._steps(session)

    def _steps(self, session: Session) -> abc.Generator[list[int | None]]:
        ids = self._ids
        while True:
            logits = session.extend(ids)[:, -1]
            tokens: list[int | None] = []
            for row, text in enumerate(self.rows):
                token = text.next(logits[row]) if self._alive[row] else None
                self._alive[row] = token is not None and not text.full
                tokens.append(token)
            if any(token is not None for token in tokens):
                yield tokens
            if not any(self._alive) or session.length >= self._decoder.context:
                return
            ids = np.asarray([[token or 0] for token in tokens], np.int32)
            if isinstance(session, LoopSession):
                yield from self._chunks(session)
                return

    def _chunks(self, session: LoopSession) -> abc.Generator[list[int | None]]:
        """Lets the runtime make many tokens at a time, and hands them on one by one."""
        while any(self._alive) and session.length < self._decoder.context:
            left = self._config.max_tokens - max(text.new for text in self.rows)
            for column in session.generate(self.rows, self._alive, min(_CHUNK, left)).T:
                tokens: list[int | None] = []
                for row, (text, token) in enumerate(zip(self.rows, column, strict=True)):
                    taken = text.take(int(token)) if self._alive[row] and token >= 0 else None
                    self._alive[row] = taken is not None and not text.full
                    tokens.append(taken)
                if any(token is not None for token in tokens):
                    yield tokens
                if not any(self._alive):
                    return
