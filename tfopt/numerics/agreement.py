"""How far two sets of answers agree, over the rows of a batch. NumPy only.

What is the same for every row says nothing: a file that ignores its input has it right as well. Each measure is
therefore of what differs between rows.
"""

import numpy as np

# What a verification measures, by name.
MEASURES = (
    "max_abs_error", "rms_error", "informative", "correlation", "signal_to_noise", "agreement", "rank",
    "next_tokens", "divergence", "perplexity",
)  # fmt: skip
# What may fail where a caller says so; with "chat" among it, a file for LiteRT-LM has no template of conversations.
ACCEPTABLE = (*MEASURES, "chat")
_SEEN = 1e-4  # of the largest value: a float32 sum in another order may be off by a hundredth of that
_FEW_ROWS = 4  # from so many on, the mean over rows tells what they have in common


def varies(expected: np.ndarray) -> bool:
    """Whether the answers differ from row to row, beyond the last bits of a float.

    >>> varies(np.zeros((8, 3))), varies(np.arange(8.0)[:, None])
    (False, True)
    """
    if len(expected) < 2:
        return bool(np.ptp(expected) > _SEEN * np.abs(expected).max())
    apart = np.abs(expected.astype(np.float64) - expected[:1].astype(np.float64)).max()
    return bool(apart > _SEEN * np.abs(expected).max())


def correlation(found: np.ndarray, expected: np.ndarray) -> float:
    """Pearson's coefficient of what differs between rows, 1 at best; 0 if nothing is found, NaN if none is due."""
    ours, theirs = _differences(found, expected)
    wanted, power = float((theirs**2).sum()), float((ours**2).sum() * (theirs**2).sum())
    if not wanted > 0:
        return float("nan")
    return float((ours * theirs).sum()) / power**0.5 if power > 0 else 0.0


def signal_to_noise(found: np.ndarray, expected: np.ndarray) -> float:
    """Power of what differs between rows over that of the error, in decibels; infinite without any error."""
    error = float(((found.astype(np.float64) - expected) ** 2).sum())
    _, signal = _differences(found, expected)
    power = float((signal**2).sum())
    if not error:
        return float("inf")
    return 10 * float(np.log10(power / error)) if power > 0 and np.isfinite(error) else float("-inf")


def class_agreement(found: np.ndarray, expected: np.ndarray) -> float:
    """Share of rows whose largest value along the last axis stands in the same place; exact ties count as kept."""
    chosen = np.take_along_axis(expected, found.argmax(-1)[..., None], -1)[..., 0]
    return float((chosen >= expected.max(-1) - 1e-6 * np.abs(expected).max()).mean())


def rank_agreement(found: np.ndarray, expected: np.ndarray) -> float:
    """Spearman's coefficient: whether the rows stand in the same order, 1 at best.

    >>> rank_agreement(np.array([1.0, 5.0, 9.0]), np.array([0.1, 0.2, 0.3]))
    1.0
    """
    return correlation(_ranks(found.ravel())[:, None], _ranks(expected.ravel())[:, None])


def _ranks(values: np.ndarray) -> np.ndarray:
    """The place of each value, equal ones sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts).astype(np.float64)
    return (last - (counts - 1) / 2)[inverse]


def _differences(found: np.ndarray, expected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    axis = 0 if len(expected) >= _FEW_ROWS else None
    ours, theirs = found.astype(np.float64), expected.astype(np.float64)
    return ours - ours.mean(axis, keepdims=True), theirs - theirs.mean(axis, keepdims=True)


def next_tokens(found: np.ndarray, expected: np.ndarray) -> float:
    """Share of tokens at which the same one is the likeliest next; logits of shape (texts, tokens, vocabulary)."""
    return class_agreement(found.reshape(-1, found.shape[-1]), expected.reshape(-1, expected.shape[-1]))


def divergence(found: np.ndarray, expected: np.ndarray) -> float:
    """Mean Kullback-Leibler divergence, in nats, of what is expected next from what is found; logits likewise.

    >>> divergence(np.array([[[0.0, 0.0]]]), np.array([[[0.0, 0.0]]]))
    0.0
    """
    total, count = 0.0, 0
    for ours, theirs in zip(found, expected, strict=True):  # a text at a time: vocabularies are large
        p, q = log_softmax(theirs), log_softmax(ours)
        total, count = total + float((np.exp(p) * (p - q)).sum()), count + len(p)
    return total / count


def perplexities(found: np.ndarray, expected: np.ndarray, ids: np.ndarray) -> tuple[float, float]:
    """Perplexity of texts (texts, tokens) by what is found and by what is expected."""
    results = []
    for logits in (found, expected):
        losses = [
            -np.take_along_axis(log_softmax(row[:-1]), text[1:, None], -1)
            for row, text in zip(logits, ids, strict=True)
        ]
        results.append(float(np.exp(np.mean(losses))))
    return results[0], results[1]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Logarithms of probabilities along the last axis, float64."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))
