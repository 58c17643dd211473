"""The last layer of a transformer computed for one token among the keys and values of all."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from tfopt.structure.nodes import Node, flat

_ATTENTION = ("MultiHeadAttention", "GroupedQueryAttention")
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

    def one_token(self, token: Any, values: Mapping[int, Any], made: Call) -> Any:
        """The last layer's output for one token (batch, 1, width) among the others' keys and values."""
        rows = {self.start: token}
        for node in self.rows:
            arguments, keywords = node.fill({**values, **rows})
            if mixes(node.operation):  # its first argument alone has the rows of the result
                others, named = node.fill({**rows, **values})
                first = {name: value for name, value in keywords.items() if name == "query"}
                arguments, keywords = (*arguments[:1], *others[1:]), {**named, **first}
            found = flat(_for_one(node.operation, made)(*arguments, **keywords))
            rows.update(zip(node.outputs, found, strict=True))
        return rows[self.last]


def mixes(operation: Any) -> bool:
    """Whether rows of the result come from the first argument, and all rows of the others."""
    name = type(operation).__name__
    return name in _ATTENTION or (getattr(operation, "symbol", None) or name) in _PRODUCTS


def _for_one(operation: Any, made: Call) -> Callable[..., Any]:
    """What is called on one token in an operation's place."""
    target = getattr(operation, "target_shape", None)
    if target and type(operation).__name__ == "Reshape" and target[0] != -1:  # a length that is known
        return type(operation)((1, *target[1:]))
    return made(operation)
