"""Packing of sequences: several short ones in one record, so that fewer tokens of a batch are padding.

Best fit, longest first: https://arxiv.org/abs/2107.02027 (Krell and others).
"""

import numpy as np

from tfopt.data.records.fields import Column, spread


def bins(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Groups of sequences whose lengths sum to `capacity` at most, in the order in which they were begun.

    Args:
        lengths: of each sequence, 1 to `capacity`.
        capacity: tokens of a record.
    """
    groups: list[list[int]] = []
    open_with: dict[int, list[int]] = {}  # room that is left -> groups with so much of it
    rooms = 0  # bit r is set where a group has room r
    for index in np.argsort(-lengths, kind="stable").tolist():
        size = int(lengths[index])
        fitting = rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1  # the smallest that is enough
            group = open_with[room].pop()
            if not open_with[room]:
                rooms &= ~(1 << room)
        else:
            room, group = capacity, len(groups)
            groups.append([])
        groups[group].append(index)
        left = room - size
        if left:
            open_with.setdefault(left, []).append(group)
            rooms |= 1 << left
    return groups


def pack_sequences(tokens: np.ndarray, lengths: np.ndarray, capacity: int) -> dict[str, Column]:
    """Records of several sequences each.

    Args:
        tokens: of all sequences one after another, int64.
        lengths: of each.
        capacity: most tokens of a record.

    Returns:
        "input_ids", the tokens of a record, and "segment_lengths", those of each of its sequences.
    """
    groups = bins(lengths, capacity)
    order = np.array([index for group in groups for index in group], np.int64)
    starts = (np.cumsum(lengths) - lengths)[order]
    sizes = lengths[order]
    counts = np.fromiter(map(len, groups), np.int64, len(groups))
    totals = np.add.reduceat(sizes, np.cumsum(counts) - counts)
    return {
        "input_ids": Column(tokens[spread(starts, sizes)], totals),
        "segment_lengths": Column(sizes, counts),
    }
