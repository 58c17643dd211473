"""What could be done to a model, one place at a time, and what each such option saves."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from tfopt import keras_api
from tfopt.compress.low_rank import splittable
from tfopt.compress.prune import prunable
from tfopt.compress.shrink import shrink
from tfopt.errors import TfoptError
from tfopt.quantization import QuantizeConfig
from tfopt.quantization.plan import plan_weights
from tfopt.structure.blocks import blocks_of
from tfopt.structure.cut import pooled_early
from tfopt.structure.early_pooling import cheaper, early_pooling
from tfopt.structure.groups import Group, Structure

UNITS = {
    "heads": (0.25, 0.5, 0.75), "neurons": (0.25, 0.5, 0.75), "channels": (0.25, 0.5, 0.75),
    "width": (0.125, 0.25, 0.5),
}  # fmt: skip
RANKS = (0.5, 0.25)  # share of a matrix's elements that both factors have
ZEROS = (0.5, 0.8)
FEW_BITS, MANY_BITS = 4, 8


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A weight that costs something.

    Attributes:
        path: of the weight.
        size: elements.
        multiplies: whether it is multiplied by for every token, rather than looked up in.
    """

    path: str
    size: int
    multiplies: bool


@dataclasses.dataclass(frozen=True)
class Option:
    """One thing done to one place.

    Attributes:
        kind: "layer", "pooling", "heads", "neurons", "channels", "width", "rank", "zeros" or "bits".
        place: the number of the layer, the name of the group, or the path of the weight.
        value: 1 for a layer or its early pooling, the share of units or zeros, the rank, or the bits.
        shares: path of a weight -> what is left of its elements.
        computes: whether these weights are still multiplied by for every token.
    """

    kind: str
    place: str
    value: float
    shares: dict[str, float] = dataclasses.field(default_factory=dict, hash=False, compare=False)
    computes: bool = True

    @property
    def paths(self) -> set[str]:
        """The weights that it is about."""
        return set(self.shares) or {self.place}

    @property
    def key(self) -> str:
        return f"{self.kind}|{self.place}|{self.value:g}"


def matrices_of(model: Any) -> dict[str, Matrix]:
    """Every weight with two axes or more."""
    return {
        w.path: Matrix(w.path, int(np.prod(w.variable.shape)), w.name != "embeddings")
        for w in keras_api.weights(model)
        if len(w.variable.shape) > 1
    }


def options_of(model: Any, structure: Structure) -> list[Option]:
    """All options, each place's own from the mildest to the strongest."""
    return [
        *_layers(model, structure), *_pooling(model, structure), *_units(model, structure),
        *_ranks(model), *_zeros(model), *_bits(model),
    ]  # fmt: skip


def _layers(model: Any, structure: Structure) -> Iterator[Option]:
    blocks = blocks_of(model, structure)
    paths = list(matrices_of(model))
    for number, block in enumerate(blocks if len(blocks) > 1 else []):
        inside = [p for p in paths if any(p.startswith(f"{name}/") for name in block.names)]
        yield Option("layer", str(number), 1, dict.fromkeys(inside, 0.0))


def _pooling(model: Any, structure: Structure) -> Iterator[Option]:
    try:
        found = early_pooling(model, structure)
        pooled_early(model, found)
    except TfoptError:  # no layers, none whose tokens are pooled, or one that needs them all
        return
    matrices = matrices_of(model)
    paths = [path for path in cheaper(model, found) if path in matrices and matrices[path].multiplies]
    yield Option("pooling", str(len(blocks_of(model, structure)) - 1), 1, dict.fromkeys(paths, 1.0), computes=False)


def _units(model: Any, structure: Structure) -> Iterator[Option]:
    for group in structure.groups:
        if group.kind == "width" and not _has_smaller_width(model, group):
            continue
        for share in UNITS.get(group.kind, ()):
            gone = group.count(share)
            if gone:
                left: dict[str, float] = {}
                for place in group.slices:  # a square matrix may have the units on both axes
                    left[place.path] = left.get(place.path, 1.0) * (1 - gone / group.units)
                yield Option(group.kind, group.name, share, left)


def _has_smaller_width(model: Any, group: Group) -> bool:
    """Whether a smaller width can be made and computes what it should; operations over the width may not."""
    try:
        shrink(model, width={group.name: 1 / group.units})
    except TfoptError:
        return False
    return True


def _ranks(model: Any) -> Iterator[Option]:
    for found in splittable(model)[0]:
        rows, columns = found.matrix.shape
        for share in RANKS:
            rank = int(share * rows * columns / (rows + columns))
            if rank:
                yield Option("rank", found.path, rank, {found.path: rank * (rows + columns) / (rows * columns)})


def _zeros(model: Any) -> Iterator[Option]:
    for weight in prunable(model)[0]:
        for share in ZEROS:
            yield Option("zeros", weight.path, share)


def _bits(model: Any) -> Iterator[Option]:
    for planned in plan_weights(model, QuantizeConfig(weight_bits=FEW_BITS)).weights:
        yield Option("bits", planned.path, FEW_BITS)
