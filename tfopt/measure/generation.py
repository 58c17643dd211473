"""How fast a causal language model answers: prompt, first token, and every token after it."""

import dataclasses
import time
from collections.abc import Mapping, Sequence

import numpy as np

from tfopt.decoding.decoder import Decoder, LoopSession, Session
from tfopt.decoding.generate import Choices, GenerateConfig
from tfopt.errors import InputError
from tfopt.measure.perplexity import Perplexity, perplexity


@dataclasses.dataclass(frozen=True)
class GenerationSpeed:
    """Figures of one model on one runtime; rates are medians over rounds.

    Attributes:
        name: the model.
        prefill_tokens_per_s: tokens of the prompt by second.
        decode_tokens_per_s: new tokens by second, the first one left out.
        first_token_s: seconds from the prompt to the first token.
        cache_bytes: keys and values at the end of the answer.
        quality: perplexity and next-token accuracy of a text, None where none was given.
    """

    name: str
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    first_token_s: float
    cache_bytes: int
    quality: Perplexity | None = None


def measure_generation(
    decoders: Mapping[str, Decoder],
    *,
    prompt_tokens: int = 64,
    new_tokens: int = 64,
    rounds: int = 5,
    text: Mapping[str, Sequence[int]] | None = None,
) -> list[GenerationSpeed]:
    """Times models in turns.

    Args:
        decoders: models by name.
        prompt_tokens: length of the prompt, random tokens.
        new_tokens: length of the answer.
        rounds: how often, after one round that is not counted.
        text: token ids by name, for perplexity.

    Raises:
        InputError: more tokens than the smallest context.
    """
    context = min(decoder.context for decoder in decoders.values())
    if prompt_tokens < 2 or new_tokens < 2 or prompt_tokens + new_tokens > context:
        raise InputError(
            f"prompt and answer must have 2 tokens or more each and {context} together at most (the context), "
            f"got {prompt_tokens} and {new_tokens}"
        )
    if rounds < 1:
        raise InputError(f"rounds must be 1 or more, got {rounds}")
    times: dict[str, list[tuple[float, float, int]]] = {name: [] for name in decoders}
    for round_ in range(rounds + 1):
        for name, decoder in decoders.items():
            found = _once(decoder, prompt_tokens, new_tokens)
            if round_:  # the first one compiles and fills caches
                times[name].append(found)
    results = []
    for name, decoder in decoders.items():
        first, rest = (float(np.median([t[i] for t in times[name]])) for i in (0, 1))
        quality = None if text is None else perplexity(decoder, text[name])
        rates = (prompt_tokens / first, (new_tokens - 1) / rest)
        results.append(GenerationSpeed(name, *rates, first, times[name][0][2], quality))
    return results


def _once(decoder: Decoder, prompt_tokens: int, new_tokens: int) -> tuple[float, float, int]:
    """Seconds until the first token, seconds for the others, bytes of the cache."""
    ids = np.random.default_rng(0).integers(0, decoder.config.vocab_size, (1, prompt_tokens), np.int32)
    with decoder.open([0]) as session:
        started = time.perf_counter()
        token = int(session.extend(ids)[0, -1].argmax())
        first = time.perf_counter() - started
        started = time.perf_counter()
        _answer(session, decoder, [*ids[0].tolist(), token], count=new_tokens - 1)
        return first, time.perf_counter() - started, session.cache_bytes


def _answer(session: Session, decoder: Decoder, tokens: list[int], count: int) -> None:
    if isinstance(session, LoopSession):
        config = GenerateConfig(max_tokens=count, stop_tokens=())
        session.generate([Choices(tokens, config, decoder.config.vocab_size)], [True], count)
        return
    token = tokens[-1]
    for _ in range(count):
        token = int(session.extend(np.asarray([[token]], np.int32))[0, -1].argmax())
