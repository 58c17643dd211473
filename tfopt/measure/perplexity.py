"""How well a causal language model knows a text: perplexity and next-token accuracy, window by window."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from tfopt.decoding.decoder import Decoder
from tfopt.errors import InputError


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """What a text was to a model.

    Attributes:
        perplexity: the exponential of the mean negative log likelihood of a token.
        next_token_accuracy: share of tokens that were the most likely ones, in [0, 1].
        tokens: how many tokens were predicted.
    """

    perplexity: float
    next_token_accuracy: float
    tokens: int


def perplexity(
    decoder: Decoder, ids: Sequence[int], window: int | None = None, stride: int | None = None
) -> Perplexity:
    """Predicts every token of a text but the first from those before it.

    Windows overlap, so that tokens late in the text are predicted from at least `window - stride` others.

    Args:
        decoder: the model on any runtime.
        ids: the text.
        window: tokens that the model sees at once; by default its context.
        stride: how far one window is from the next; by default half a window.

    Raises:
        InputError: a text of fewer than two tokens, or a window or stride out of range.
    """
    window = decoder.context if window is None else window
    if not 2 <= window <= decoder.context:
        raise InputError(f"window must be in [2, {decoder.context}] (the context), got {window}")
    stride = max(1, window // 2) if stride is None else stride
    if not 1 <= stride < window:
        raise InputError(f"stride must be in [1, {window}), got {stride}")
    tokens = np.asarray(ids, np.int32)
    if len(tokens) < 2:
        raise InputError(f"the text must have 2 tokens or more, got {len(tokens)}")
    total, right, predicted = 0.0, 0, 1  # the first token has nothing before it
    for start in range(0, len(tokens), stride):
        part = tokens[start : start + window]
        fresh = start + len(part) - predicted
        if fresh <= 0:
            break
        with decoder.open([0]) as session:
            logits = session.extend(part[None, :-1], every=True)[0, -fresh:].astype(np.float64)
        targets = part[-fresh:]
        logits -= logits.max(-1, keepdims=True)
        chances = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        total -= float(chances[np.arange(fresh), targets].sum())
        right += int((logits.argmax(-1) == targets).sum())
        predicted += fresh
    count = predicted - 1
    return Perplexity(float(np.exp(total / count)), right / count, count)
