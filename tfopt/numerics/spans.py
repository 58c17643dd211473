"""The likeliest span between two rows of logits, as in question answering. NumPy only."""

from collections.abc import Sequence

import numpy as np

_LONGEST = 30  # tokens of an answer


def best_span(start: np.ndarray, end: np.ndarray, places: Sequence[int]) -> tuple[int, int] | None:
    """First and last token of the likeliest answer, or None where no answer is likelier.

    Args:
        start, end: logits (length,).
        places: tokens that may belong to an answer.
    """
    best, found = float(start[0] + end[0]), None
    for first in places:
        for last in range(first, min(first + _LONGEST, places[-1] + 1)):
            total = float(start[first] + end[last])
            if total > best:
                best, found = total, (first, last)
    return found
