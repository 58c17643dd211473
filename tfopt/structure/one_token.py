"""The last layer of a transformer computed for one token among the keys and values of all."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from tfopt.structure.nodes import Node, flat

ATTENTION = ("MultiHeadAttention", "GroupedQueryAttention")
_PRODUCTS = ("Matmul", "linalg.matmul", "matmul")
Call = Callable[[Any], Callable[..., Any]]  # an operation of the old model -> what is called in its place


@dataclasses.dataclass(frozen=True)
class EarlyPooling:
    """Where the pooling goes.

    Attributes:
        start: identity of the tensor that the last layer takes, (batch, length, width).
        last: of the last tensor with tokens, which was pooled.
        pooled: of what the pooling gives, (batch, width).
        pooling: the nodes between these two, in order.
        rows: nodes between the first two that now see one token, in order.
        needs: identities of tensors that they and the pooling read and that stay as they are.
    """

    start: int
    last: int
    pooled: int
    pooling: tuple[Node, ...]
    rows: tuple[Node, ...]
    needs: frozenset[int]

    def pool(self, values: Mapping[int, Any], made: Call) -> Any:
        """What the pooling makes of the tensor that the last layer takes."""
        inside = {**values, self.last: values[self.start]}
        for node in self.pooling:
            arguments, keywords = node.fill(inside)
            inside.update(zip(node.outputs, flat(made(node.operation)(*arguments, **keywords)), strict=True))
        return inside[self.pooled]

    def one_token(self, token: Any, values: Mapping[int, Any], made: Call) -> dict[int, Any]:
        """What the last layer's nodes give for one token (batch, 1, width) among the others' keys and values."""
        rows = {self.start: token}
        for node in self.rows:
            arguments, keywords = node.fill({**values, **rows})
            if mixes(node.operation):  # its first argument alone has the rows of the result
                others, named = node.fill({**rows, **values})
                first = {name: value for name, value in keywords.items() if name == "query"}
                arguments, keywords = (*arguments[:1], *others[1:]), {**named, **first}
            found = flat(made(node.operation)(*arguments, **keywords))
            rows.update(zip(node.outputs, found, strict=True))
        return rows


def mixes(operation: Any) -> bool:
    """Whether rows of the result come from the first argument, and all rows of the others."""
    name = type(operation).__name__
    return name in ATTENTION or (getattr(operation, "symbol", None) or name) in _PRODUCTS


def one_token_target(layer: Any) -> tuple[int, ...] | None:
    """The target shape for one token of a Reshape layer that knows the length; None for any other layer."""
    target = getattr(layer, "target_shape", None) if type(layer).__name__ == "Reshape" else None
    return None if target is None or target[0] == -1 else (1, *target[1:])


def without_length(output_shape: Any) -> Any:
    """The output shape of an EinsumDense, for any length."""
    knows = isinstance(output_shape, list | tuple) and len(output_shape) > 1
    return [None, *output_shape[1:]] if knows else output_shape
