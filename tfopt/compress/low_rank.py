"""Low rank: a matrix becomes the product of two thin ones, with fewer bytes and multiply-adds.

Denil et al., "Predicting Parameters in Deep Learning", https://arxiv.org/abs/1306.0543; weighted by activations as
in Wang et al., "SVD-LLM", https://arxiv.org/abs/2403.07378.
"""

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tfopt._keras import extras, keras_api
from tfopt._keras.keras_io import call, check_samples, inputs_of
from tfopt._keras.selection import Patterns, Selection, Skipped
from tfopt.compress.base import Option, Prepared
from tfopt.errors import InputError
from tfopt.numerics.low_rank import Decomposition, decompose
from tfopt.quantization.simulation import watched_inputs
from tfopt.structure.factors import Factorable, factorable, two_layers
from tfopt.structure.nodes import called_layers, is_functional
from tfopt.structure.rebuild import Changes, rebuild

_log = logging.getLogger(__name__)
_BATCH, _FLOAT = 8, 4  # rows at once; bytes of an element
_SHARES = (0.5, 0.25)  # of a matrix's elements that both factors have, which a search tries


@dataclasses.dataclass(frozen=True)
class FactorizeConfig:
    """What to split; see `factorize` for the meaning of each field."""

    rank: int | Mapping[str, int] | None = None
    energy: float | None = None
    max_bytes: int | None = None
    representative: Mapping[str, np.ndarray] | None = None
    include: Patterns = None
    exclude: Patterns = None


Config = FactorizeConfig


def prepare(model: Any, config: FactorizeConfig) -> Prepared:
    """The model with its matrices split, to be trained on or not."""
    settings = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return Prepared(factorize(model, **settings), [], splittable(model, config.include, config.exclude)[1])


def finish(model: Any) -> Any:
    """The model as it is: two layers are all that is left."""
    return model


def is_attached(model: Any) -> bool:
    return False


def explain(model: Any) -> dict[str, str]:
    """Path of a matrix -> the ranks at which it gets smaller, or the reason why it stays whole."""
    if not is_functional(model):
        return {}
    found, skipped = splittable(model)
    return {**{f.path: f"rank 1 to {f.largest}" for f in found}, **{s.path: s.reason for s in skipped}}


def options(model: Any) -> Iterator[Option]:
    """Ranks of each matrix."""
    for found in splittable(model)[0]:
        rows, columns = found.matrix.shape
        for share in _SHARES:
            rank = int(share * rows * columns / (rows + columns))
            if rank:
                yield Option(
                    "rank", found.path, rank, shares={found.path: rank * (rows + columns) / (rows * columns)}
                )


def factorize(
    model: Any,
    *,
    rank: int | Mapping[str, int] | None = None,
    energy: float | None = None,
    max_bytes: int | None = None,
    representative: Mapping[str, np.ndarray] | None = None,
    include: Patterns = None,
    exclude: Patterns = None,
) -> Any:
    """Splits matrices into two factors each.

    Args:
        model: a built functional model of either generation; it is not changed.
        rank: of every matrix, or by the weight's path; give this, `energy` or `max_bytes`.
        energy: share of each matrix's squared norm that stays, in (0, 1]; what would get no smaller stays whole.
        max_bytes: most bytes of the float32 weights of the whole model; what costs least of all energy goes first.
        representative: inputs by name: then errors of products count instead of errors of matrices.
        include: name patterns, layer class names or classes; only these are split.
        exclude: likewise; these stay whole.

    Returns:
        A new model of built-in layers: Dense, EinsumDense, Embedding, Conv1D and Conv2D layers that were split are
        two layers, the first one linear and without a bias.

    Raises:
        InputError: a bad argument, a rank that makes a matrix no smaller, or a budget that cannot be met (the
            smallest is named).
    """
    keras_api.check_finite(keras_api.weights(keras_api.check_model(model)))
    if [rank, energy, max_bytes].count(None) != 2:
        raise InputError(f"give one of rank, energy and max_bytes, got {rank}, {energy} and {max_bytes}")
    if energy is not None and not 0 < energy <= 1:
        raise InputError(f"energy must be in (0, 1], got {energy}")
    found, skipped = splittable(model, include, exclude)
    for one in skipped:
        _log.info("%s stays whole: %s", one.path, one.reason)
    if not found:
        raise InputError(
            f"model {model.name!r} has no matrix to split" + (f" ({skipped[0].reason})" if skipped else "")
        )
    moments = {} if representative is None else _moments(model, found, representative)
    parts = {f.path: decompose(f.matrix, moments.get(f.path)) for f in found}
    if rank is not None:
        ranks = _given(found, rank)
    elif energy is not None:
        ranks = {f.path: r for f in found if (r := parts[f.path].rank_of(energy)) <= f.largest}
    else:
        ranks = _within(model, found, parts, budget=max_bytes or 0)
    if not ranks:
        _log.warning("energy %s makes no matrix of model %r smaller: the new model is as large", energy, model.name)
    return _split(model, [f for f in found if f.path in ranks], parts, ranks=ranks)


def splittable(
    model: Any, include: Patterns = None, exclude: Patterns = None
) -> tuple[list[Factorable], list[Skipped]]:
    """Matrices of layers that are nodes of a graph, and the others with the reason why they stay whole."""
    selection = Selection(model, include, exclude)
    in_graph = set(map(id, called_layers(model)))
    generates = not {extras.CONFIG, extras.SEQ2SEQ}.isdisjoint(extras.of(model))
    layers = {w.layer_path: w for w in selection.weights if len(w.variable.shape) > 1}
    taken = {path for path, _ in keras_api.walk(model)}
    found, skipped = [], []
    for path, weight in layers.items():
        reason = selection.reason_to_skip(weight)
        if reason is None and id(weight.layer) not in in_graph:
            reason = f"it lies inside {_holder(model, path)}, which makes its layers itself"
        if reason is None and generates and (weight.name == "embeddings" or path == "logits"):
            reason = "models that generate look up and multiply by whole tables"
        one = factorable(path, weight.layer) if reason is None else reason
        if isinstance(one, Factorable) and ({one.first, one.second} - {path}) & taken:
            one = "it was split before"
        if isinstance(one, Factorable) and one.largest < 1:
            one = "two factors would not be smaller at any rank"
        if isinstance(one, str):
            skipped.append(Skipped(weight.path, one))
        else:
            found.append(one)
    return found, skipped


def _holder(model: Any, path: str) -> str:
    """The outermost layer with sublayers of its own on the way to a layer, and its class."""
    layers, parts = dict(keras_api.walk(model)), path.split("/")
    for depth in range(1, len(parts)):
        around = layers.get("/".join(parts[:depth]))
        if around is not None and not (keras_api.is_model(around) and is_functional(around)):
            return f"{parts[depth - 1]!r} of class {type(around).__name__}"
    return repr(parts[0])


def _moments(
    model: Any, found: list[Factorable], representative: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Second moments of what Dense and EinsumDense layers are fed, by path of the weight."""
    sizes = {id(f.layer): (f.path, len(f.matrix)) for f in found if f.weight == "kernel"}
    sums: dict[str, np.ndarray] = {}

    def watch(layer: Any, x: Any) -> None:
        path, size = sizes.get(id(layer), ("", None))
        if size is not None and x.shape[-1] == size:  # a convolution sees patches, not rows
            rows = np.asarray(x, np.float64).reshape(-1, size)
            sums[path] = sums.get(path, 0) + rows.T @ rows

    inputs = inputs_of(model)
    samples = check_samples(inputs, dict(representative))
    with watched_inputs(model, watch):
        for start in range(0, len(next(iter(samples.values()))), _BATCH):
            call(model, inputs, {name: value[start : start + _BATCH] for name, value in samples.items()})
    return sums


def _given(found: list[Factorable], rank: int | Mapping[str, int]) -> dict[str, int]:
    known = {f.path: f for f in found}
    ranks = dict(rank) if isinstance(rank, Mapping) else dict.fromkeys(known, rank)
    for path, value in ranks.items():
        if path not in known:
            raise InputError(f"no matrix {path!r} to split; there are {', '.join(known)}")
        if value < 1:
            raise InputError(f"rank of {path!r} must be 1 or more, got {value}")
    large = {path: value for path, value in ranks.items() if value > known[path].largest}
    if (isinstance(rank, Mapping) and large) or len(large) == len(ranks):
        path, value = next(iter(large.items()))
        rows, columns = known[path].matrix.shape
        raise InputError(
            f"rank {value} makes {path!r} ({rows} x {columns}) no smaller; it must be at most {known[path].largest}"
        )
    for path in large:
        _log.info("%s stays whole: rank %d makes it no smaller", path, ranks[path])
    return {path: int(value) for path, value in ranks.items() if path not in large}


def _within(model: Any, found: list[Factorable], parts: Mapping[str, Decomposition], budget: int) -> dict[str, int]:
    """Ranks that meet a budget of bytes; each step takes away what costs least energy by byte."""
    total = _FLOAT * sum(int(np.prod(w.variable.shape)) for w in keras_api.weights(model))
    steps = []
    least = total
    for one in found:
        whole, each = one.matrix.size, sum(one.matrix.shape)
        energy = parts[one.path].energy
        first = (1 - energy[one.largest - 1]) / (whole - one.largest * each)
        steps.append((first, one.path, one.largest, whole - one.largest * each))
        worst = first
        for rank in range(one.largest - 1, 0, -1):
            worst = max(worst, (energy[rank] - energy[rank - 1]) / each)  # a rank goes after those above it
            steps.append((worst, one.path, rank, each))
        least -= _FLOAT * (whole - each)
    if budget < least:
        raise InputError(f"the weights take at least {least:,} bytes at rank 1, got a budget of {budget:,}")
    ranks: dict[str, int] = {}
    for _, path, rank, saved in sorted(steps, key=lambda s: s[0]):
        if total <= budget:
            break
        ranks[path], total = rank, total - _FLOAT * saved
    if not ranks:
        raise InputError(f"the weights take {total:,} bytes already, got a budget of {budget:,}")
    return ranks


def _split(
    model: Any, found: list[Factorable], parts: Mapping[str, Decomposition], ranks: Mapping[str, int]
) -> Any:
    values: dict[str, np.ndarray] = {}
    replaced = {}
    for one in found:
        values |= one.values(*parts[one.path].of_rank(ranks[one.path]))
        replaced[one.path.rpartition("/")[0]] = lambda one=one: two_layers(one, ranks[one.path])
    made = rebuild(model, Changes(values, replaced=replaced))
    members = extras.of(model)
    if members:
        extras.put(made, {n: m for n, m in members.items() if "quantization" not in n})
    return made
