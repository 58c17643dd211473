"""A transformer whose last layer computes one token: pooling moves from behind that layer to before its queries.

Dai et al., "Funnel-Transformer", https://arxiv.org/abs/2006.03236, pool queries and leave keys and values whole.
Where pooling picks one token, nothing changes; where it takes a mean or a maximum, the last layer works on that of
what it takes instead, which training makes good.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt._keras import keras_api
from tfopt.errors import InputError
from tfopt.structure.blocks import between, blocks_of, bottlenecks
from tfopt.structure.groups import Structure
from tfopt.structure.masked import TOLERANCE, samples_of
from tfopt.structure.nodes import Node, flat, functional, inputs_in_order, nodes
from tfopt.structure.one_token import EarlyPooling, mixes, one_token_target

_FAR = 1e3  # added to a token, shows in whatever reads it, a maximum too


def early_pooling(model: Any, structure: Structure) -> EarlyPooling:
    """Finds where the pooling of a model can go, and tries it.

    Raises:
        InputError: no layer, no pooling behind the last one, or something in it that needs all tokens at once.
    """
    blocks = blocks_of(model, structure)
    if not blocks:
        raise InputError(
            f"model {model.name!r} has no layers of attention between tensors of one shape, so none that could "
            "compute one token; leave pool_early out"
        )
    graph = list(nodes(model))
    shapes = {out: tuple(structure.trace.tensors[out].shape) for node in graph for out in node.outputs}
    start, width = blocks[-1].start, shapes[blocks[-1].start][-1]
    last, after = _last_tokens(model, graph, shapes, start=start, end=blocks[-1].end)
    try:
        values = _values(model, graph, structure.trace.length)
        for pooled in (t for t in after if len(shapes[t]) == 2 and shapes[t][-1] == width):
            found = _between_tokens(graph, start, last, pooled=pooled)
            if _gives_equal_tokens_back(found, values):
                _check(found, values)
                return found
    except (ValueError, TypeError, ArithmeticError, tf.errors.OpError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"the last layer of model {model.name!r} cannot compute one token alone: {error}; leave pool_early out"
        ) from error
    raise InputError(
        f"model {model.name!r} does not pool the tokens of its last layer to one vector of {width} values, by "
        "picking one or by a mean or maximum, before anything else reads them; leave pool_early out"
    )


def cheaper(model: Any, found: EarlyPooling) -> list[str]:
    """Paths of the weights that are multiplied by for one token alone."""
    alone = {out for node in found.rows for out in node.outputs}
    others = (node for node in nodes(model) if node.operation is not None and not alone & set(node.outputs))
    names = {node.operation.name for node in found.rows} - {node.operation.name for node in others}
    return [
        weight.path
        for weight in keras_api.weights(model)
        if (parts := weight.path.split("/"))[0] in names
        and parts[1] not in ("key", "value")  # of Keras's attention, which every token needs
    ]


def _last_tokens(
    model: Any, graph: list[Node], shapes: Mapping[int, tuple[int, ...]], start: int, end: int
) -> tuple[int, list[int]]:
    """The tensor whose tokens are pooled, and the tensors behind it that all paths go through.

    A norm may follow the last layer; it works on one token as well. What follows without weights is pooling.
    """
    others = (out for node in graph for out in node.outputs if out != start)
    after = bottlenecks(functional(model), graph, [start, *others])
    after = after[after.index(end) :]
    weighted = {out for node in graph if getattr(node.operation, "weights", None) for out in node.outputs}
    last = next((t for t in reversed(after) if t in weighted and shapes[t] == shapes[start]), end)
    return last, after[after.index(last) :]


def _between_tokens(graph: list[Node], start: int, last: int, pooled: int) -> EarlyPooling:
    inside = tuple(between(graph, last, pooled))
    rows, whole = _rows(graph, start, last)
    made = {out for node in inside for out in node.outputs}
    outer = {i for node in inside for i in node.inputs} - made - {last}
    return EarlyPooling(start, last, pooled, pooling=inside, rows=rows, needs=frozenset(whole | outer | {start}))


def _rows(graph: list[Node], start: int, last: int) -> tuple[tuple[Node, ...], set[int]]:
    """The nodes that see one token, and the tensors that they read whole."""
    inside = between(graph, start, last)
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
                raise InputError(
                    f"{node.operation.name!r} takes no tokens of the last layer as its first argument, so one "
                    "token cannot be computed alone; leave pool_early out"
                )
            rows = {first}
            values = [*arguments[1:], *(v for k, v in keywords.items() if k != "query")]
            whole |= {id(one) for one in flat(values)} & reads
        else:
            rows = reads & ahead
            whole |= reads - ahead
        wanted |= rows
    return tuple(found[::-1]), whole


def _values(model: Any, graph: list[Node], length: int) -> dict[int, Any]:
    """Every tensor of the model for two random rows; the first tokens are no padding, one of the last ones is."""
    given = []
    for value in samples_of(model, length).values():
        if np.issubdtype(value.dtype, np.integer) and value.ndim > 1:
            value[:, :1], value[0, -1:], value[1, -1:] = 1, 0, 1
        given.append(tf.constant(value))
    values = dict(zip(map(id, inputs_in_order(model)), given, strict=True))
    masks: dict[int, Any] = {}
    for node in graph:
        if node.operation is None:
            continue
        arguments, keywords = node.fill(values)
        results = flat(node.operation(*arguments, **keywords))
        values.update(zip(node.outputs, results, strict=True))
        masks |= _masks({out: values[out] for out in node.outputs})
    _put_on(masks, values)
    return values


def _masks(values: Mapping[int, Any]) -> dict[int, Any]:
    """The masks that Keras keeps on tensors."""
    found = {key: getattr(value, "_keras_mask", None) for key, value in values.items()}
    return {key: mask for key, mask in found.items() if mask is not None}


def _put_on(masks: Mapping[int, Any], values: Mapping[int, Any]) -> None:
    """Puts masks back: Keras 3's attention takes them off its values."""
    for key, mask in masks.items():
        values[key]._keras_mask = mask


def _gives_equal_tokens_back(found: EarlyPooling, values: Mapping[int, Any]) -> bool:
    """Whether the pooling of equal tokens is that token: a sum, or a vector of length 1, must not move."""
    tokens = keras_api.to_numpy(values[found.start])
    pooled = _pooled(found, values, np.repeat(tokens[:, :1], tokens.shape[1], 1))
    return bool(pooled.shape == tokens[:, 0].shape and np.allclose(pooled, tokens[:, 0], rtol=1e-4, atol=1e-4))


def _pooled(found: EarlyPooling, values: Mapping[int, Any], tokens: np.ndarray) -> np.ndarray:
    given = tf.constant(tokens)
    _put_on(_masks({found.start: values[found.start]}), {found.start: given})
    return keras_api.to_numpy(found.pool({**values, found.start: given}, lambda operation: operation))


def _check(found: EarlyPooling, values: dict[int, Any]) -> None:
    """Compares every token that the pooling reads, computed alone, with the same among all.

    Raises:
        InputError: they differ, since the layer looks at a token's place or neighbours outside attention.
    """
    tokens = keras_api.to_numpy(values[found.start])
    pooled = _pooled(found, values, tokens)
    masks, length = _masks(values), tokens.shape[1]
    for place in range(length):
        far = tokens.copy()
        far[:, place] += _FAR
        read = np.abs(_pooled(found, values, far) - pooled).max(-1) > 0  # by row: padding may not be
        if not read.any():
            continue
        _put_on(masks, values)
        rows = found.one_token(values[found.start][:, place : place + 1], values, _for_one)
        if not _equal(values[found.last], rows[found.last], place, read=read):
            names = (
                node.operation.name
                for node in found.rows
                for out in node.outputs
                if tuple(values[out].shape)[1:2] == (length,)
                and not _equal(values[out], rows[out], place, read=read)
            )
            raise InputError(
                f"{next(names)!r} gives a token alone something else than among the others, so the last layer "
                "cannot compute one token; leave pool_early out"
            )


def _equal(whole: Any, row: Any, place: int, read: np.ndarray) -> bool:
    """Whether one token is what it is among all, in the rows that are read."""
    expected, found = keras_api.to_numpy(whole)[:, place : place + 1], keras_api.to_numpy(row)
    limit = TOLERANCE * max(1.0, float(np.abs(expected).max()))
    return found.shape == expected.shape and bool(np.abs(found - expected)[read].max() <= limit)


def _for_one(operation: Any) -> Any:
    target = one_token_target(operation)
    return operation if target is None else type(operation)(target)
