"""How well a causal language model knows a text: perplexity and next-token accuracy, window by window."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from tfopt.decoding.decoder import Decoder
from tfopt.decoding.seq2seq_decoder import Seq2SeqDecoder
from tfopt.errors import InputError
from tfopt.numerics.agreement import log_softmax


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


@dataclasses.dataclass(frozen=True)
class PredictedText:
    """Every token of a text but the first, as a model predicted it.

    Attributes:
        losses: negative log likelihood of each, float64.
        chosen: the most likely token at each, int64.
        right: where that is the token of the text, bool.
    """

    losses: np.ndarray
    chosen: np.ndarray
    right: np.ndarray

    @property
    def perplexity(self) -> Perplexity:
        return Perplexity(float(np.exp(self.losses.mean())), float(self.right.mean()), len(self.losses))


def perplexity(
    decoder: Decoder, ids: Sequence[int], *, window: int | None = None, stride: int | None = None
) -> Perplexity:
    """Predicts every token of a text but the first from those before it.

    Windows overlap, so that tokens late in the text are predicted from at least `window - stride` others.

    Args:
        decoder: the model on any runtime.
        ids: the text.
        window: tokens that the model sees at once; by default its context.
        stride: how far one window is from the next; by default half a window.

    Raises:
        InputError: a text of fewer than two tokens, a window or stride out of range, or an encoder-decoder.
    """
    if isinstance(decoder, Seq2SeqDecoder):
        raise InputError("perplexity of one text is for causal language models; this one needs a source beside it")

    def logits_of(part: np.ndarray) -> np.ndarray:
        with decoder.open([0]) as session:
            return session.extend(part[None], every=True)[0]

    return predict_text(logits_of, decoder.context, ids, window=window, stride=stride).perplexity


def predict_text(
    logits_of: Callable[[np.ndarray], np.ndarray],
    context: int,
    ids: Sequence[int] | np.ndarray,
    window: int | None = None,
    stride: int | None = None,
) -> PredictedText:
    """What `perplexity` is computed from.

    Args:
        logits_of: token ids (length,) int32 -> logits (length, vocabulary).
        context: the most tokens it takes.
        ids, window, stride: as for `perplexity`.

    Raises:
        InputError: as `perplexity`.
    """
    losses, chosen = [], []
    for part, fresh in text_windows(context, ids, window=window, stride=stride):
        logits = log_softmax(logits_of(part[:-1])[-fresh:])
        losses.append(-logits[np.arange(fresh), part[-fresh:]])
        chosen.append(logits.argmax(-1))
    best = np.concatenate(chosen)
    return PredictedText(np.concatenate(losses), best, best == np.asarray(ids)[1:])


def text_windows(
    context: int, ids: Sequence[int] | np.ndarray, window: int | None = None, stride: int | None = None
) -> list[tuple[np.ndarray, int]]:
    """The windows of a text, (length,) int32 each, and how many of the last tokens are new in each.

    Args:
        context: the most tokens of a window.
        ids, window, stride: as for `perplexity`.

    Raises:
        InputError: as `perplexity`.
    """
    window = context if window is None else window
    if not 2 <= window <= context:
        raise InputError(f"window must be in [2, {context}] (the context), got {window}")
    stride = max(1, window // 2) if stride is None else stride
    if not 1 <= stride < window:
        raise InputError(f"stride must be in [1, {window}), got {stride}")
    tokens = np.asarray(ids, np.int32)
    if len(tokens) < 2:
        raise InputError(f"the text must have 2 tokens or more, got {len(tokens)}")
    found, predicted = [], 1  # the first token has nothing before it
    for start in range(0, len(tokens), stride):
        part = tokens[start : start + window]
        fresh = start + len(part) - predicted
        if fresh <= 0:
            break
        found.append((part, fresh))
        predicted += fresh
    return found
