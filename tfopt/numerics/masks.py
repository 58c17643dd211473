"""Magnitude masks: which weights stay, by absolute value.

Thresholds are found by NumPy's introselect on the host: exact, and linear in the number of weights, where
TensorFlow offers a full sort.
"""

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from tfopt.errors import InputError

Mask = np.ndarray  # bool, True where the weight stays

# A larger share of exact zeros than this is in no fresh or trained kernel: it was pruned.
PRUNED_SHARE = 0.01


class SparsityPattern(NamedTuple):
    """Which groups of weights are kept or removed together.

    Attributes:
        kind: "unstructured", "n:m" or "block".
        first: n of n:m (weights kept in each group), or the rows of a block.
        second: m of n:m (group length along the input axis), or the columns of a block.
    """

    kind: str
    first: int = 1
    second: int = 1


def parse_structure(text: str) -> SparsityPattern:
    """Reads "unstructured", "2:4" (2 kept of every 4) or "4x1" (blocks of 4 rows, 1 column).

    Raises:
        InputError: the text is none of these, or the numbers make no sense.
    """
    if text == "unstructured":
        return SparsityPattern("unstructured")
    if match := re.fullmatch(r"(\d+):(\d+)", text):
        kept, group = int(match[1]), int(match[2])
        if 0 < kept < group:
            return SparsityPattern("n:m", kept, group)
    elif (match := re.fullmatch(r"(\d+)x(\d+)", text)) and int(match[1]) * int(match[2]) > 0:
        return SparsityPattern("block", int(match[1]), int(match[2]))
    raise InputError(f"structure must be 'unstructured', 'n:m' with 0 < n < m, or 'RxC', got {text!r}")


def check_pattern_sparsity(structure: SparsityPattern, sparsity: float) -> None:
    """An n:m pattern fixes the sparsity; another one asked for is a mistake.

    Raises:
        InputError: the sparsity is not that of the pattern.
    """
    kind, kept, group = structure
    if kind == "n:m" and abs(sparsity - (1 - kept / group)) > 1e-6:
        raise InputError(f"structure {kept}:{group} has sparsity {1 - kept / group:g}, got {sparsity:g}")


def zero_share(arrays: Sequence[np.ndarray]) -> float | None:
    """Share of zeros among all elements of the arrays, or None without any."""
    total = sum(a.size for a in arrays)
    return 1.0 - sum(int(np.count_nonzero(a)) for a in arrays) / total if total else None


def kept_count(size: int, sparsity: float) -> int:
    """How many of `size` weights stay at `sparsity`, at least one.

    Computed in float32 and rounded half to even, as tensorflow-model-optimization does, so that the
    two keep the same number of weights.
    """
    kept = np.round(np.float32(size) * (np.float32(1.0) - np.float32(sparsity)))
    return min(size, max(1, int(kept)))


def largest(scores: np.ndarray, kept: int) -> Mask:
    """Mask of exactly `kept` largest scores; among equal scores the first ones in memory stay.

    Args:
        scores: non-negative scores of any shape, finite.
        kept: number of True values in the result, from 0 to the number of scores.
    """
    flat = scores.reshape(-1)
    if kept >= flat.size:
        return np.ones(scores.shape, bool)
    if kept <= 0:
        return np.zeros(scores.shape, bool)
    # Selection slows down among many equal values, and pruned weights are just that.
    candidates = flat[flat > 0] if np.count_nonzero(flat[::64]) < 0.9 * len(flat[::64]) else flat
    if kept > candidates.size:
        candidates = flat
    threshold = np.partition(candidates, candidates.size - kept)[candidates.size - kept]
    mask = flat >= threshold
    surplus = np.count_nonzero(mask) - kept
    if surplus:
        ties = np.flatnonzero(flat == threshold)
        mask[ties[len(ties) - surplus :]] = False
    return mask.reshape(scores.shape)


def magnitude_masks(
    weights: Sequence[np.ndarray],
    sparsity: float,
    structure: SparsityPattern | None = None,
    across: bool = False,
) -> list[Mask]:
    """One mask per weight tensor, True where the weight stays.

    Args:
        weights: arrays of rank 2 or more; the last axis is the output axis, as in Keras kernels.
        sparsity: share to remove, in [0, 1). With an n:m structure the pattern alone decides.
        structure: groups that are removed together; unstructured by default.
        across: rank all tensors together (one threshold) instead of each on its own.

    Raises:
        InputError: n:m ranked across layers, or a structure on a tensor it does not fit.
    """
    structure = structure or SparsityPattern("unstructured")
    if structure.kind == "n:m":
        return [_n_of_m(w, structure.first, structure.second) for w in weights]
    blocks = (structure.first, structure.second)
    scores = [w if structure.kind == "unstructured" else _block_scores(w, blocks) for w in weights]
    if across:
        flat = np.concatenate([np.abs(s).reshape(-1) for s in scores])
        kept = largest(flat, kept_count(flat.size, sparsity))
        cuts = np.cumsum([s.size for s in scores])[:-1]
        kept_parts = [part.reshape(s.shape) for part, s in zip(np.split(kept, cuts), scores, strict=True)]
    else:
        # NumPy lets other threads run while it selects; the cores are idle between two training steps.
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            kept_parts = list(pool.map(lambda s: largest(np.abs(s), kept_count(s.size, sparsity)), scores))
    if structure.kind == "unstructured":
        return kept_parts
    return [_expand_blocks(k, blocks, w.shape) for k, w in zip(kept_parts, weights, strict=True)]


def _n_of_m(weight: np.ndarray, kept: int, group: int) -> Mask:
    """Keeps the `kept` largest of every `group` neighbours along the input (second to last) axis."""
    moved = np.moveaxis(np.abs(weight), -2, -1)
    short = -moved.shape[-1] % group
    # Padding ranks below every real weight, so a short last group still keeps what it can.
    padded = np.pad(moved, [(0, 0)] * (moved.ndim - 1) + [(0, short)], constant_values=-1.0)
    groups = padded.reshape(*padded.shape[:-1], -1, group)
    order = np.argsort(-groups, axis=-1, kind="stable")
    mask = np.zeros(groups.shape, bool)
    np.put_along_axis(mask, order[..., :kept], True, axis=-1)
    mask = mask.reshape(padded.shape)[..., : moved.shape[-1]]
    return np.moveaxis(mask, -1, -2)


def _block_scores(weight: np.ndarray, blocks: tuple[int, int]) -> np.ndarray:
    """Mean magnitude of each block of the (inputs, outputs) matrix; edge blocks may be smaller."""
    matrix = np.abs(weight.reshape(-1, weight.shape[-1]))
    rows = np.arange(0, matrix.shape[0], blocks[0])
    columns = np.arange(0, matrix.shape[1], blocks[1])
    sums = np.add.reduceat(np.add.reduceat(matrix, rows, axis=0), columns, axis=1)
    heights = np.diff(np.append(rows, matrix.shape[0]))
    widths = np.diff(np.append(columns, matrix.shape[1]))
    return sums / np.outer(heights, widths).astype(sums.dtype)


def _expand_blocks(mask: Mask, blocks: tuple[int, int], shape: tuple[int, ...]) -> Mask:
    rows = int(np.prod(shape[:-1]))
    full = np.repeat(np.repeat(mask, blocks[0], axis=0), blocks[1], axis=1)
    return full[:rows, : shape[-1]].reshape(shape)
