"""The entropy bound: how many bytes values need when each is coded by how often it occurs, wherever it is."""

import numpy as np

from tfopt.archive.coding import values_of

_MANY = 65536  # distinct values beyond which naming them costs more than it saves


def bound(content: bytes, bits: int) -> float:
    """Bytes that values need at least, in the cheapest of three descriptions.

    For 4 and 8 bits the entropy of the values. For 16 and 32 bits the least of: the entropies of their bytes; the
    same of what is not the most frequent value, and where that is; the entropy of the values and a list of them.

    Args:
        content: values as for `encode`.
        bits: 4, 8, 16 or 32.
    """
    if len(content) * 8 % bits:
        return float(len(content))
    values = values_of(content, bits)
    if not len(values):
        return 0.0
    distinct, counts = np.unique(values, return_counts=True)
    whole = _entropy(counts)
    if bits <= 8:
        return whole / 8
    others = values[values != distinct[counts.argmax()]]
    share = np.array([len(others), len(values) - len(others)])
    found = [_bytewise(values), _entropy(share) + _bytewise(others)]
    if len(distinct) <= _MANY:
        found.append(whole + len(distinct) * bits)
    return min(found) / 8


def _bytewise(values: np.ndarray) -> float:
    planes = values.view(np.uint8).reshape(-1, values.itemsize).T
    return sum(_entropy(np.bincount(plane)) for plane in planes)


def _entropy(counts: np.ndarray) -> float:
    """Bits of so many values of each kind."""
    some = counts[counts > 0]
    return float((some * np.log2(some.sum() / some)).sum())
