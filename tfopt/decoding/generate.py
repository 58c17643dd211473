"""The loop: prompts in, tokens out, one at a time."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from tfopt.decoding.decoder import Decoder, Session
from tfopt.decoding.sampling import Sampler, SamplingConfig
from tfopt.errors import InputError


@dataclasses.dataclass(frozen=True)
class GenerateConfig(SamplingConfig):
    """How a text is continued.

    Attributes:
        max_tokens: most new tokens; the context may end a text earlier.
        min_tokens: new tokens before any stop token may come.
        stop_tokens: ids that end a text; they are not part of it.
        stop: strings that end a text; they are not part of it.
        truncate: keep only the end of prompts that are longer than the context, instead of an error.
    """

    max_tokens: int = 128
    min_tokens: int = 0
    stop_tokens: tuple[int, ...] = ()
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
        InputError: none, an empty one, an id out of range, or one that leaves no room for an answer.
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
        if len(ids) >= decoder.context:
            if not config.truncate:
                raise InputError(
                    f"the prompt has {len(ids)} tokens, the context holds {decoder.context} with at least one of "
                    "the answer; shorten it or set truncate to keep its end"
                )
            ids = ids[len(ids) - decoder.context + 1 :]
        checked.append(ids)
    return checked


class Choices:
    """Chooses the tokens of one text, and knows when it ends."""

    def __init__(self, prompt: Sequence[int], config: GenerateConfig, vocab: int, row: int = 0) -> None:
        self.config, self.tokens = config, list(prompt)
        self.new = 0
        self.sampler = Sampler(config, row)
        self.said = np.zeros(vocab, bool)
        self.said[np.asarray(self.tokens)] = True

    def allowed(self, logits: np.ndarray, ahead: int = 0) -> np.ndarray:
        """Logits without the stop tokens that may not come yet."""
        stops = self.config.stop_tokens
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
        if token in self.config.stop_tokens and self.new >= self.config.min_tokens:
            return None
        self.new += 1
        self.tokens.append(token)
        self.said[token] = True
        return token

    @property
    def full(self) -> bool:
        """Whether no more tokens were asked for."""
        return self.new >= self.config.max_tokens


def stream(
    decoder: Decoder, prompts: Sequence[Sequence[int]], config: GenerateConfig
) -> Iterator[list[int | None]]:
    """Continues several texts at once; keys and values are freed when the iterator ends or is closed.

    Args:
        decoder: the model.
        prompts: token ids of each prompt; they may differ in length.
        config: how.

    Yields:
        The next token of each text, None for texts that have ended.

    Raises:
        InputError: see `check_prompts`.
    """
    checked = check_prompts(prompts, decoder, config)
    longest = max(map(len, checked))
    pads = [longest - len(ids) for ids in checked]
    ids = np.asarray([[0] * pad + row for pad, row in zip(pads, checked, strict=True)], np.int32)
    texts = [Choices(row, config, decoder.config.vocab_size, i) for i, row in enumerate(checked)]
    with decoder.open(pads) as session:
        yield from _steps(session, decoder.context, ids, texts)


def _steps(session: Session, context: int, ids: np.ndarray, texts: list[Choices]) -> Iterator[list[int | None]]:
    alive = [True] * len(texts)
    while True:
        logits = session.extend(ids)[:, -1]
        tokens: list[int | None] = []
        for row, text in enumerate(texts):
            token = text.next(logits[row]) if alive[row] else None
            alive[row] = token is not None and not text.full
            tokens.append(token)
        if any(token is not None for token in tokens):
            yield tokens
        if not any(alive) or session.length >= context:
            return
        ids = np.asarray([[token or 0] for token in tokens], np.int32)
