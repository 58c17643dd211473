"""Which grid belongs to which weight of a file: by the layer that traced its operator, then by its values."""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from tfopt.quantization.record import Grid
from tfopt.tflite import flatbuffer as fb
from tfopt.tflite.owners import Owners
from tfopt.tflite.weights import LOOKUPS, Found, Reader, find_weights

_TOLERANCE = 1e-5


@dataclasses.dataclass(frozen=True)
class Matched:
    """A weight of a file with the grid that belongs to it, scaled as the converter scaled the weight."""

    found: Found
    grid: Grid


class Unmatched(NamedTuple):
    """A weight of a file without a grid, and the weight of the model that it was made from, if that is known."""

    found: Found
    path: str | None


@dataclasses.dataclass(frozen=True)
class Origins:
    """The matrices of the model that a file was converted from.

    Attributes:
        grids: of those that are to be integers, by path.
        floats: values of those that stay in float, by path, each (outputs, inputs).
        owners: the scopes in which layers were traced.
    """

    grids: Mapping[str, Grid]
    floats: Mapping[str, np.ndarray] = dataclasses.field(repr=False)
    owners: Owners


def match(model: Any, origins: Origins) -> tuple[list[Matched], list[Unmatched]]:
    """Finds for each weight of a file the grid of the layer that reads it.

    Converters fold batch norms and attention scales into weights; a grid with one scale per output follows. They
    also store equal weights once: where layers with different grids read one buffer, it is stored for each again.

    Returns:
        What was matched, and the weights without a grid.
    """
    found = find_weights(model)
    fits = {weight.buffer: _fitting(weight, origins) for weight in found}
    told = {
        reader: next((path for path in _told(weight, reader, origins.owners) if path in fits[weight.buffer]), None)
        for weight in found
        for reader in weight.readers
    }
    taken = set(told.values())
    matched, others = [], []
    for weight in found:
        fit = fits[weight.buffer]
        if not fit:
            others.append(Unmatched(weight, _origin(weight, origins)))
            continue
        own = [path for reader in weight.readers if (path := told[reader]) is not None]
        free = [path for path in fit if path not in taken]
        rest = (free or own or list(fit))[0]  # for operators whose names the converter lost
        parts: dict[str, list[Reader]] = {}
        for reader in weight.readers:
            parts.setdefault(told[reader] or rest, []).append(reader)
        for number, (path, readers) in enumerate(parts.items()):
            part = weight if number == 0 else _stored_again(model, weight, readers, path=path)
            if path in origins.grids:
                matched.append(Matched(part, _scaled(origins.grids[path], fit[path])))
            else:
                others.append(Unmatched(part, path))
    return matched, others


def products_apart(model: Any, matched: list[Matched]) -> list[Matched]:
    """Tables that are also multiplied by, stored again for their products: the two need scales in other shapes."""
    found = []
    for item in matched:
        codes = [fb.code(model, model.subgraphs[r.graph].operators[r.operator]) for r in item.found.readers]
        products = [r for r, code in zip(item.found.readers, codes, strict=True) if code not in LOOKUPS]
        if not products or len(products) == len(codes):
            found.append(item)
            continue
        lookups = tuple(reader for reader in item.found.readers if reader not in products)
        code = next(code for code in codes if code not in LOOKUPS)
        part = dataclasses.replace(_stored_again(model, item.found, products, path="product"), operator=code)
        found.append(Matched(dataclasses.replace(item.found, operator=fb.Op.GATHER, readers=lookups), item.grid))
        found.append(Matched(part, item.grid))
    return found


def _told(weight: Found, reader: Reader, owners: Owners) -> tuple[str, ...]:
    """Weights of the layer that traced an operator."""
    alone = {other.name for other in weight.readers} == {reader.name}
    return owners.named_in([reader.name]) or (owners.named_in(weight.names) if alone else ())


def _origin(weight: Found, origins: Origins) -> str | None:
    """The weight of the model from which one without a grid was made: of its layer, with its shape."""
    shapes = {path: grid.source.shape for path, grid in origins.grids.items()}
    paths = dict.fromkeys(path for reader in weight.readers for path in _told(weight, reader, origins.owners))
    same = [path for path in paths if shapes.get(path) == weight.matrix.shape]
    return same[0] if len(same) == 1 else None


def _fitting(weight: Found, origins: Origins) -> dict[str, np.ndarray]:
    """Factors by path of the matrices with which a weight agrees up to one factor per output."""
    found = {}
    for path, grid in origins.grids.items():
        factors = _factors(weight.matrix, grid.source)
        if factors is not None and (grid.spec.symmetric or (factors >= 0).all()):
            found[path] = factors
    for path, source in origins.floats.items():
        factors = _factors(weight.matrix, source)
        if factors is not None:
            found[path] = factors
    return found


def _stored_again(model: Any, weight: Found, readers: list[Reader], path: str) -> Found:
    """A buffer of its own for some of the operators that read a weight."""
    buffer = len(model.buffers)
    model.buffers.append(copy.copy(model.buffers[weight.buffer]))
    copies: dict[tuple[int, int], int] = {}
    for reader in readers:
        graph = model.subgraphs[reader.graph]
        op = graph.operators[reader.operator]
        index = int(op.inputs[reader.place])
        if (reader.graph, index) not in copies:
            tensor = graph.tensors[index]
            copies[reader.graph, index] = fb.add_tensor(
                graph, f"{weight.name}/{path}", tensor.shape, dtype=tensor.type, buffer=buffer
            )
        inputs = [int(i) for i in op.inputs]
        inputs[reader.place] = copies[reader.graph, index]
        op.inputs = inputs
    names = tuple(fb.name(model.subgraphs[graph].tensors[index]) for (graph, _), index in copies.items())
    return dataclasses.replace(weight, buffer=buffer, names=names, readers=tuple(readers))


def _factors(matrix: np.ndarray, source: np.ndarray) -> np.ndarray | None:
    """One factor per row that makes `source` equal to `matrix`, or None."""
    if matrix.shape != source.shape:
        return None
    for rows in (slice(0, 4), slice(None)):  # most candidates differ at once
        found, known = matrix[rows], source[rows]
        largest = np.abs(known).argmax(1)[:, None]
        top = np.take_along_axis(known, largest, 1)
        factors = np.where(top == 0, 1.0, np.take_along_axis(found, largest, 1) / np.where(top == 0, 1, top))
        reach = np.abs(found).max(1, keepdims=True)
        if (np.abs(found - factors * known) > _TOLERANCE * np.maximum(reach, 1e-12)).any():
            return None
    return factors.astype(np.float32)


def _scaled(grid: Grid, factors: np.ndarray) -> Grid:
    """The grid of a weight that was multiplied by a factor per output."""
    if (factors == 1).all():
        return grid
    factors = np.where(factors == 0, 1.0, factors)
    sign = np.sign(factors).astype(np.int8)
    equal = np.ptp(factors) <= _TOLERANCE * np.abs(factors).max()
    if grid.scale.shape[0] == 1 and not equal:  # one scale per tensor becomes one per output
        grid = dataclasses.replace(grid, spec=grid.spec._replace(granularity="channel"))
    scale = grid.scale * np.abs(factors[:1] if equal else factors).astype(np.float32)
    if isinstance(grid.spec.granularity, int):  # what kernels in blocks compute with
        scale = scale.astype(ml_dtypes.bfloat16).astype(np.float32)
    zero = np.broadcast_to(grid.zero, scale.shape)
    return dataclasses.replace(
        grid, integers=grid.integers * sign, scale=scale, zero=zero, source=grid.source * factors
    )
