"""A transformer whose last layer computes one token: pooling moves from behind that layer to before its queries.

Dai et al., "Funnel-Transformer", https://arxiv.org/abs/2006.03236, pool queries and leave keys and values whole.
Where pooling picks one token, nothing changes; where it takes a mean, the last layer works on the mean of what it
takes instead, which training makes good.
"""

from typing import Any

import numpy as np

from tfopt import keras_api
from tfopt.errors import InputError, VerificationError
from tfopt.structure.blocks import blocks_of, cuts
from tfopt.structure.groups import Structure
from tfopt.structure.masked import TOLERANCE, samples_of
from tfopt.structure.nodes import Node, flat, functional, nodes
from tfopt.structure.one_token import EarlyPooling, mixes


def early_pooling(model: Any, structure: Structure) -> EarlyPooling:
    """Finds where the pooling of a model can go, and tries it.

    Raises:
        InputError: no layer, no pooling behind the last one, or something in it that needs all tokens at once.
        VerificationError: a token alone comes out otherwise than among the others.
    """
    blocks = blocks_of(model, structure)
    if not blocks:
        raise InputError(f"model {model.name!r} has no layers of attention whose last one could pool early")
    root, graph = functional(model), list(nodes(model))
    shapes = {out: tuple(structure.trace.tensors[out].shape) for node in graph for out in node.outputs}
    start, end = blocks[-1].start, blocks[-1].end
    after = cuts(root, graph, [start, *(out for node in graph for out in node.outputs if out != start)])
    after = after[after.index(end) :]
    flatter = [i for i, tensor in enumerate(after) if len(shapes[tensor]) == 2]
    if not flatter or shapes[after[flatter[0]]][-1] != shapes[start][-1]:
        raise InputError(
            f"model {model.name!r} does not pool the tokens of its last layer to one vector of {shapes[start][-1]} "
            "values; leave pool_early out"
        )
    before = after[: flatter[0]]
    weighted = {out for node in graph if getattr(node.operation, "weights", None) for out in node.outputs}
    last = next((t for t in reversed(before) if t in weighted and shapes[t] == shapes[start]), end)
    pooled = after[flatter[0]]
    inside = _between(graph, last, pooled)
    rows, needs = _rows(graph, start, last)
    outer = {i for node in inside for i in node.inputs} - {out for node in inside for out in node.outputs} - {last}
    found = EarlyPooling(start, last, pooled, inside, rows, frozenset(needs | outer | {start}))
    _check(model, structure, found)
    return found


def _between(graph: list[Node], start: int, end: int) -> tuple[Node, ...]:
    """Nodes that depend on one tensor and lead to another."""
    ahead, behind = {start}, {end}
    for node in graph:
        if ahead & set(node.inputs):
            ahead |= set(node.outputs)
    found = []
    for node in reversed(graph):
        if behind & set(node.outputs) and ahead & set(node.inputs):
            behind |= set(node.inputs) - {start}
            found.append(node)
    return tuple(found[::-1])


def _rows(graph: list[Node], start: int, last: int) -> tuple[tuple[Node, ...], set[int]]:
    """The nodes that see one token, and the tensors that they read whole."""
    inside = _between(graph, start, last)
    ahead = {start} | {out for node in inside for out in node.outputs}
    symbols = {out: one for node in graph for out, one in zip(node.outputs, node.symbolic, strict=True)}
    wanted, whole, found = {last}, set[int](), []
    for node in reversed(inside):
        if not wanted & set(node.outputs):
            continue
        found.append(node)
        reads = set(node.inputs)
        if mixes(node.operation):
            arguments, keywords = node.fill(symbols)
            first = id(keywords["query"] if "query" in keywords else arguments[0])
            if first not in ahead:
                raise InputError(f"{node.operation.name!r} takes no rows of the last layer as its first argument")
            rows = {first}
            values = [*arguments[1:], *(v for k, v in keywords.items() if k != "query")]
            whole |= {id(one) for one in flat(values)} & reads
        else:
            rows = reads & ahead
            whole |= reads - ahead
        wanted |= rows
    return tuple(found[::-1]), whole


def _check(model: Any, structure: Structure, found: EarlyPooling) -> None:
    """Compares the first token alone with the first among all."""
    values: dict[int, Any] = {}
    given = samples_of(model, structure.trace.length)
    for node in nodes(model):
        if node.operation is None:
            (tensor,) = node.symbolic
            values[node.outputs[0]] = given[str(tensor.name).partition(":")[0]]
            continue
        arguments, keywords = node.fill(values)
        values.update(zip(node.outputs, flat(node.operation(*arguments, **keywords)), strict=True))
    try:
        one = found.one_token(values[found.start][:, :1], values, lambda operation: operation)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise InputError(f"the last layer cannot compute one token alone: {error}") from error
    expected, got = (keras_api.to_numpy(x) for x in (values[found.last][:, :1], one))
    if expected.shape != got.shape:
        raise InputError(
            f"the last layer cannot compute one token alone: it gives shape {got.shape}, not {expected.shape}, so "
            "something in it depends on how many tokens there are"
        )
    off, limit = float(np.abs(got - expected).max()), TOLERANCE * max(1.0, float(np.abs(expected).max()))
    if not off <= limit:
        raise VerificationError("outputs", f"one token computed alone differs by {off:.3g}, not {limit:.3g}")
