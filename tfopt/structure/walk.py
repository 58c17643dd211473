"""What is known while the operations of a graph are gone through."""

import dataclasses
from collections.abc import Callable
from typing import Any

from tfopt.structure.axes import Axis, axis, fix, leaves

Place = tuple[str, int]  # path of a weight, one of its axes


@dataclasses.dataclass
class Walk:
    """Axes of every tensor so far.

    Attributes:
        axes: name of a tensor -> its axes.
        places: name of a tensor that is a weight, maybe reshaped -> for each axis, the axes of the weight in it.
        consumed: axes of weights that a product sums over.
        weights: axes of each weight by its path.
        variables: name of an operation that reads a weight -> path of the weight.
        is_layer: whether an operation is part of a layer, whose constants follow its sizes.
        may_reshape: whether the sizes of a reshape can be changed.
    """

    weights: dict[str, list[Axis]]
    variables: dict[str, str]
    is_layer: Callable[[Any], bool]
    may_reshape: Callable[[Any], bool]
    axes: dict[str, list[Axis]] = dataclasses.field(default_factory=dict)
    places: dict[str, list[frozenset[Place]]] = dataclasses.field(default_factory=dict)
    consumed: set[Place] = dataclasses.field(default_factory=set)

    def of(self, tensor: Any) -> list[Axis]:
        return self.axes[tensor.name]

    def give(self, tensor: Any, axes: list[Axis]) -> None:
        self.axes[tensor.name] = axes

    def unknown(self, op: Any) -> None:
        """Whatever goes in or comes out keeps its size."""
        fix(f"operation {op.type} is not known", *(one for tensor in op.inputs for one in self.of(tensor)))
        for tensor in op.outputs:
            self.give(tensor, fresh(tensor, f"it comes from operation {op.type}"))

    def read(self, op: Any) -> list[Axis]:
        """The axes of the weight that an operation reads."""
        return list(self.weights[self.variables[op.name]])

    def consume(self, tensor: Any, position: int) -> None:
        """A product sums over this axis of a tensor."""
        if tensor.name in self.places:
            self.consumed |= self.places[tensor.name][position]


def fresh(tensor: Any, reason: str | None = None) -> list[Axis]:
    """New axes of a tensor's sizes."""
    if tensor.shape.rank is None or None in tuple(tensor.shape):
        return []
    return [axis(int(size), reason) for size in tensor.shape]


def norm_over(axes: list[Axis]) -> None:
    for leaf in leaves(*axes):
        leaf.normed = True
