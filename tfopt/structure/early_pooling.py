"""A transformer whose last layer computes one token: pooling moves from behind that layer to before its queries.

Dai et al., "Funnel-Transformer", https://arxiv.org/abs/2006.03236, pool queries and leave keys and values whole.
Where pooling picks one token, nothing changes; where it takes a mean, the last layer works on the mean of what it
takes instead, which training makes good.
"""

from typing import Any

import numpy as np
import tensorflow as tf

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
    weighted = {out for node in graph if getattr(node.operation, "weights", None) for out in node.outputs}
    last = next((t for t in reversed(after) if t in weighted and shapes[t] == shapes[start]), end)
    width = shapes[start][-1]
    vectors = [t for t in after[after.index(last) :] if len(shapes[t]) == 2 and shapes[t][-1] == width]
    values = _values(model, structure.trace.length)
    for pooled in vectors:
        found = _between_tokens(graph, start, last, pooled)
        if _averages(found, values):
            _check(found, values)
            return found
    raise InputError(
        f"model {model.name!r} does not pool the tokens of its last layer to one vector of {width} values, by "
        "picking a token or an average of them; leave pool_early out"
    )


def _between_tokens(graph: list[Node], start: int, last: int, pooled: int) -> EarlyPooling:
    inside = _between(graph, last, pooled)
    rows, whole = _rows(graph, start, last)
    made = {out for node in inside for out in node.outputs}
    outer = {i for node in inside for i in node.inputs} - made - {last}
    return EarlyPooling(start, last, pooled, inside, rows, frozenset(whole | outer | {start}))


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


def _values(model: Any, length: int) -> dict[int, Any]:
    """Every tensor of the model for two random rows, whose first tokens are no padding."""
    values: dict[int, Any] = {}
    given = samples_of(model, length)
    for node in nodes(model):
        if node.operation is None:
            (tensor,) = node.symbolic
            value = given[str(tensor.name).partition(":")[0]]
            if np.issubdtype(value.dtype, np.integer):
                value[:, :1] = 1
            values[node.outputs[0]] = tf.constant(value)
            continue
        arguments, keywords = node.fill(values)
        values.update(zip(node.outputs, flat(node.operation(*arguments, **keywords)), strict=True))
    return values


def _averages(found: EarlyPooling, values: dict[int, Any]) -> bool:
    """Whether the pooling of equal tokens gives that token: a sum, or a vector of length 1, must not move."""
    tokens = keras_api.to_numpy(values[found.start])
    equal = tf.constant(np.repeat(tokens[:, :1], tokens.shape[1], 1))
    pooled = keras_api.to_numpy(found.pool({**values, found.start: equal}, lambda operation: operation))
    return bool(pooled.shape == tokens[:, 0].shape and np.allclose(pooled, tokens[:, 0], rtol=1e-4, atol=1e-4))


def _check(found: EarlyPooling, values: dict[int, Any]) -> None:
    """Compares the first token alone with the first among all."""
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
