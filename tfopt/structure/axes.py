"""Axes of tensors as products of factors, so that what must be cut together is found together.

An axis of 384 that a reshape splits into 6 heads of 64 is two factors. Whatever an operation forces to have the
same size is made the same factor; what no rule understands is fixed.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence


@dataclasses.dataclass(eq=False)
class Factor:
    """A part of an axis.

    Attributes:
        size: how many.
        fixed: why it must keep its size, or None.
        normed: whether some operation computes a statistic over it.
        batched: whether products of activations run over it side by side, as over the heads of attention.
    """

    size: int
    fixed: str | None = None
    normed: bool = False
    batched: bool = False
    _same: "Factor | None" = None
    _parts: "tuple[Factor, ...]" = ()

    @property
    def root(self) -> "Factor":
        """The factor that stands for all that are the same."""
        found = self
        while found._same is not None:
            found = found._same
        return found

    def leaves(self) -> "Iterator[Factor]":
        """What it is made of, outermost first."""
        root = self.root
        if root._parts:
            for part in root._parts:
                yield from part.leaves()
        else:
            yield root

    def split(self, outer: int) -> None:
        """Makes it a product of `outer` and the rest."""
        root = self.root
        flags = (root.fixed, root.normed, root.batched)
        root._parts = (Factor(outer, *flags), Factor(root.size // outer, *flags))


Axis = tuple[Factor, ...]


def axis(size: int, fixed: str | None = None) -> Axis:
    """A new axis; sizes of 1, and of 0 as placeholders have, are no factor."""
    return () if size < 2 else (Factor(size, fixed),)


def leaves(*axes: Axis) -> list[Factor]:
    """The factors of axes as they are known now, outermost first."""
    return [leaf for one in axes for factor in one for leaf in factor.leaves()]


def size_of(one: Axis) -> int:
    return math.prod(factor.size for factor in one)


def fix(reason: str, *axes: Axis) -> None:
    """No size of these axes may change."""
    for leaf in leaves(*axes):
        leaf.fixed = leaf.fixed or reason


def unify(first: Axis, second: Axis) -> None:
    """Makes two axes of one size the same."""
    one, other = leaves(first), leaves(second)
    while one and other:
        a, b = one[0].root, other[0].root
        if a._parts or b._parts:  # split on the way
            one[:1], other[:1] = list(a.leaves()), list(b.leaves())
        elif a is b:
            one.pop(0), other.pop(0)
        elif a.size == b.size:
            b._same = a
            a.fixed = a.fixed or b.fixed
            a.normed, a.batched = a.normed or b.normed, a.batched or b.batched
            one.pop(0), other.pop(0)
        else:
            larger, smaller = (a, b) if a.size > b.size else (b, a)
            if larger.size % smaller.size:
                fix("its axes are mixed with others", first, second)
                return
            larger.split(smaller.size)


def regroup(axes: Sequence[Axis], sizes: Sequence[int]) -> list[Axis] | None:
    """The axes of a reshape, or None where an axis would hold a part of what cannot be split.

    Args:
        axes: before.
        sizes: after.
    """
    rest, result = leaves(*axes), []
    for size in sizes:
        taken: list[Factor] = []
        while math.prod(f.size for f in taken) < size:
            so_far = math.prod(f.size for f in taken)
            if not rest or size % so_far:
                return None
            needed = size // so_far
            head = rest[0].root
            if head._parts:
                rest[:1] = list(head.leaves())
            elif head.size <= needed:
                taken.append(rest.pop(0))
            elif head.size % needed == 0:
                head.split(needed)
            else:
                return None
        if math.prod(f.size for f in taken) != size:
            return None
        result.append(tuple(taken))
    return result
