"""The layers of a residual network: stretches of the graph that can be left out, since their ends have equal axes.

A stretch ends where every path from the first embedding to the outputs goes through one tensor.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfopt._keras import keras_api
from tfopt.errors import InputError
from tfopt.structure.axes import leaves
from tfopt.structure.groups import Structure, structure_of
from tfopt.structure.nodes import Node, flat, functional, nodes, struct_of

_PRODUCTS = ("MatMul", "BatchMatMulV2", "BatchMatMulV3", "Einsum")


@dataclasses.dataclass(frozen=True)
class Block:
    """A layer that can be left out.

    Attributes:
        start, end: identities of the symbolic tensors that go in and come out.
        names: of the layers with weights inside.
        tensors: identities of all symbolic tensors that are made inside.
    """

    start: int
    end: int
    names: tuple[str, ...]
    tensors: tuple[int, ...]


def blocks_of(model: Any, structure: Structure) -> list[Block]:
    """The layers of a transformer, first to last; empty where the graph has no such stretches.

    A layer begins with attention and ends where the next one begins.
    """
    if structure.residual is None:
        return []
    root = functional(model)
    graph = list(nodes(root))
    ends = bottlenecks(root, graph, _stream(graph, structure))
    inside = [between(graph, start, end) for start, end in itertools.pairwise(ends)]
    attends = [i for i, some in enumerate(inside) if _attends(some, structure)]
    if not attends:
        return []
    period = attends[1] - attends[0] if len(attends) > 1 else _only_layer(inside[attends[0] :], structure)
    regular = all(b - a == period for a, b in itertools.pairwise(attends))
    if not regular or attends[-1] + period > len(inside):
        return []
    return [
        _block(ends[i], ends[i + period], [n for some in inside[i : i + period] for n in some]) for i in attends
    ]


def calls_of_blocks(graph: Any) -> list[list[Node]]:
    """The calls of each layer of a transformer, first to last, whatever techniques do to its layers.

    Args:
        graph: functional model with every call spelled out (`structure.inlined`).
    """
    # What is simulated in a call, as ranges that are observed, hides where tensors are the same.
    try:
        plain = keras_api.keras_module(keras_api.generation_of(graph)).models.clone_model(graph)
    except Exception:  # noqa: BLE001 - whatever somebody's own configuration raises; then as it is
        plain = graph
    before, now = ([node for node in nodes(one) if node.operation is not None] for one in (plain, graph))
    if [type(node.operation) for node in before] != [type(node.operation) for node in now]:
        plain, before = graph, now
    same = {node.outputs: other for node, other in zip(before, now, strict=True)}
    blocks = blocks_of(plain, structure_of(plain))
    return [[same[node.outputs] for node in between(before, block.start, block.end)] for block in blocks]


def _only_layer(inside: list[list[Node]], structure: Structure) -> int:
    """How many stretches belong to a single layer: a last norm does where one follows the attention as well."""
    norms = [not any(op.type in _PRODUCTS for op in _operations(some, structure)) for some in inside]
    last = max((i for i, norm in enumerate(norms) if not norm), default=0) + 1
    return last + (len(norms) > last and len(norms) > 1 and norms[1])


def _block(start: int, end: int, inside: list[Node]) -> Block:
    names = (n.operation.name for n in inside if getattr(n.operation, "weights", None))
    made = tuple(out for node in inside for out in node.outputs)
    return Block(start, end, tuple(dict.fromkeys(names)), tensors=made)


def _stream(graph: list[Node], structure: Structure) -> list[int]:
    """Tensors with the axes of the residual stream, in order; the first is an embedding."""
    found: list[int] = []
    first: list[Any] | None = None
    for node in graph:
        for out in node.outputs:
            axes = structure.axes.get(structure.trace.tensors[out].name)
            if not axes or leaves(axes[-1]) != [structure.residual]:
                continue
            before = leaves(*axes[:-1])
            first = before if first is None else first
            if before == first:
                found.append(out)
    return found


def bottlenecks(root: Any, graph: list[Node], stream: list[int]) -> list[int]:
    """Tensors, of these, that every path from the first of them to the outputs goes through."""
    if not stream:
        return []
    before = {stream[0]: 1}  # how many paths lead here
    for node in graph:
        count = sum(before.get(i, 0) for i in set(node.inputs))
        for out in node.outputs:
            before.setdefault(out, count)
    after: dict[int, int] = {}
    for tensor in flat(struct_of(root, "outputs")):
        after[id(tensor)] = 1
    for node in reversed(graph):
        count = sum(after.get(out, 0) for out in node.outputs)
        for i in set(node.inputs):
            after[i] = after.get(i, 0) + count
    total = after.get(stream[0], 0)
    return [t for t in stream if before.get(t, 0) * after.get(t, 0) == total and total]


def between(graph: list[Node], start: int, end: int) -> list[Node]:
    """Nodes on paths from one tensor to another."""
    ahead = {start}
    for node in graph:
        if ahead & set(node.inputs) and end not in ahead:
            ahead |= set(node.outputs)
    behind = {end}
    found = []
    for node in reversed(graph):
        if behind & set(node.outputs) and ahead & set(node.inputs) and start not in node.outputs:
            behind |= set(node.inputs) - {start}
            found.append(node)
    return found[::-1]


def _attends(inside: list[Node], structure: Structure) -> bool:
    """Whether a softmax runs here."""
    return any(op.type == "Softmax" for op in _operations(inside, structure))


def _operations(inside: list[Node], structure: Structure) -> list[Any]:
    owners = {id(node.operation) for node in inside}
    return [op for op in structure.trace.operations if id(structure.trace.owner.get(op.name)) in owners]


def chosen_blocks(model: Any, structure: Structure, layers: int | Sequence[int] | None) -> list[Block]:
    """So many of a model's layers, evenly spread, or those of the given numbers.

    Raises:
        InputError: the model has no layers of one kind, or not those.
    """
    if layers is None or layers == 0:
        return []
    blocks = blocks_of(model, structure)
    if not blocks:
        raise InputError("the model has no layers that can be left out: none repeat between tensors of one shape")
    return [blocks[i] for i in chosen_layers(layers, len(blocks))]


def chosen_layers(layers: int | Sequence[int], count: int) -> list[int]:
    """The numbers of so many of some layers, evenly spread, or those given.

    Raises:
        InputError: there are not those.
    """
    if isinstance(layers, int):
        if not 0 < layers < count:
            raise InputError(f"layers must be in [0, {count - 1}] of {count}, got {layers}")
        # Those that stay are spread evenly, the first and the last among them where there are two or more.
        stay = {round(i) for i in np.linspace(0, count - 1, count - layers)}
        return [i for i in range(count) if i not in stay]
    gone = sorted({int(i) for i in layers})
    if not gone or gone[0] < 0 or gone[-1] >= count or len(gone) == count:
        raise InputError(f"layers must name some of 0 to {count - 1}, got {list(layers)}")
    return gone
