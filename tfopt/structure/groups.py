"""Groups of units that can be cut: which slices of which weights belong to each unit.

Fang et al., "DepGraph: Towards Any Structural Pruning", https://arxiv.org/abs/2301.12900, build groups from pairs
of layers; here they are found as equal factors of axes in the graph of operations, whatever the layers are.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from tfopt._keras import keras_api
from tfopt.errors import InputError
from tfopt.structure.axes import Axis, Factor, axis, fix, leaves
from tfopt.structure.one_token import ATTENTION
from tfopt.structure.own_class import can_be_made, own_config
from tfopt.structure.rebuild import why_fixed
from tfopt.structure.resize import Made, Shape, config_of_layer, custom_layers, resized_config
from tfopt.structure.rules import apply
from tfopt.structure.trace import Trace, trace
from tfopt.structure.walk import Walk, fresh

Kind = Literal["heads", "head_size", "neurons", "channels", "width"]
_BY_CLASS = "of whose arguments none changes it alone"
_DIGITS = re.compile(r"\d+")
_CONVOLUTION = ("Conv1D", "Conv2D", "Conv3D", "DepthwiseConv2D", "SeparableConv2D")


@dataclasses.dataclass(frozen=True)
class Slices:
    """Where the units of a group lie along one axis of a weight.

    Attributes:
        path: the weight.
        axis: of the weight; its size is ``outer * units * inner``.
        outer, inner: what is around the units on that axis.
        consumed: whether a product sums over the axis, so that the unit's output is multiplied by it.
    """

    path: str
    axis: int
    outer: int
    inner: int
    consumed: bool


@dataclasses.dataclass(frozen=True)
class Group:
    """Units that can be cut.

    Attributes:
        name: path of the first layer that makes them.
        kind: "heads" of attention, "head_size", what each head has of values, "neurons" between dense layers,
            "channels" of convolutions, or "width", the residual stream, over which norms compute statistics.
        units: how many there are.
        slices: where they lie.
        factor: the factor of axes that they are.
        alone: whether they can be cut by themselves; else only together with all of their kind, or with the width
            at the same share, since the model's class has one number for all.
        by_class: whether the model's own class can be made without some of these and all that are alike.
    """

    name: str
    kind: Kind
    units: int
    slices: tuple[Slices, ...]
    factor: Factor = dataclasses.field(repr=False, compare=False)
    alone: bool = True
    by_class: bool = False

    def count(self, share: float) -> int:
        """How many units a share of them is; one always stays."""
        return min(self.units - 1, round(share * self.units))


@dataclasses.dataclass(frozen=True)
class Structure:
    """The groups of a model, and what is behind them.

    Attributes:
        groups: what can be cut, in the order of the graph.
        fixed: path of a weight -> for each axis that cannot be cut, the reason.
        trace: the graph.
        axes: name of a tensor in the graph -> axes.
        residual: the factor over which norms compute statistics in most weights, cuttable or not.
    """

    groups: tuple[Group, ...]
    fixed: dict[str, list[str]]
    trace: Trace
    axes: dict[str, list[Axis]]
    residual: Factor | None


def structure_of(model: Any) -> Structure:
    """Walks the graph of a functional model.

    Raises:
        InputError: the model is not functional.
    """
    found = trace(model)
    own = {w.path: w for w in keras_api.weights(model)}
    weights = {path: [axis(int(d)) for d in w.variable.shape] for path, w in own.items()}
    by_class = own_config(model) is not None  # then making it anew tells what sizes may change
    reshaped: list[Any] = []  # to sizes that stand somewhere, maybe in the configuration of the class

    def may_reshape(op: Any) -> bool:
        follows = _may_reshape(found, op)
        if by_class and not follows:
            reshaped.append(op)
        return by_class or follows

    walk = Walk(weights, found.variables, lambda op: _is_layer(found, op), may_reshape=may_reshape)
    for tensor in found.inputs:
        walk.give(tensor, fresh(tensor, "it is an axis of an input"))
    for op in found.operations:
        if op.type == "Placeholder":
            for tensor in op.outputs:
                walk.axes.setdefault(tensor.name, fresh(tensor))
        else:
            apply(walk, op)
    for tensor in found.outputs:
        fix("it is an axis of an output", *walk.of(tensor))
    layers = dict(keras_api.walk(model))
    stiff: dict[str, str] = {}
    for path, weight in own.items():
        reason = why_fixed(layers, weight)
        if reason is not None and by_class:
            stiff[path] = reason  # the class may make such layers in other sizes
        elif reason is not None:
            fix(reason, *weights[path])
        elif type(weight.layer).__name__.startswith("Depthwise") and len(weights[path]) > 2:
            fix("it multiplies channels", weights[path][-1])
    sized = {id(leaf.root) for op in reshaped for leaf in _split_or_joined(walk, op)}
    groups = _groups(own, walk)
    for group in (g for g in groups if id(g.factor.root) in sized):
        stiff |= dict.fromkeys((s.path for s in group.slices), "an operation reshapes it to sizes of its own")
    groups = _possible(groups, model, own, stiff=stiff)
    reasons = {
        path: [leaf.fixed for one in axes for leaf in leaves(one) if leaf.fixed] for path, axes in weights.items()
    }
    fixed = {path: list(dict.fromkeys(r)) for path, r in reasons.items() if r}
    return Structure(groups, fixed, found, axes=walk.axes, residual=_residual(weights))


def _split_or_joined(walk: Walk, op: Any) -> list[Factor]:
    """The factors of the axes that a reshape does not hand on as they are."""
    before = [leaves(one) for one in walk.of(op.inputs[0])]
    return [leaf for one in walk.of(op.outputs[0]) if leaves(one) not in before for leaf in leaves(one)]


def _possible(
    groups: tuple[Group, ...], model: Any, own: dict[str, Any], stiff: Mapping[str, str]
) -> tuple[Group, ...]:
    """The groups that all layers of somebody's own can be made without; others are fixed, and say why."""
    customs = custom_layers(model)
    tried: dict[Any, bool] = {}
    made: Made = {}
    refused: dict[str, str] = {}
    for group in groups:
        inside = {path for path in customs if any(s.path.startswith(f"{path}/") for s in group.slices)}
        by = next(
            (p for p in sorted(inside) if not _can_lose(group, p, customs[p], own=own, tried=tried, made=made)),
            None,
        )
        reason = next((stiff[s.path] for s in group.slices if s.path in stiff), None)
        if by is not None:
            kind = type(customs[by].operation).__name__
            reason = f"it lies inside {by!r} of class {kind}, {_BY_CLASS}"
        if reason is not None:
            refused[group.name] = reason
    by_class = _by_class(model, own, groups, made=made)
    together = _together(model, own, groups, refused=set(refused) - by_class, made=made)
    for group in groups:
        if group.name in refused and group.name not in by_class | together:
            fix(refused[group.name], (group.factor,))
    return tuple(
        dataclasses.replace(g, alone=g.name not in refused, by_class=g.name in by_class)
        for g in groups
        if g.name not in refused or g.name in by_class | together
    )


def _by_class(model: Any, own: dict[str, Any], groups: tuple[Group, ...], made: Made) -> set[str]:
    """Names of the groups that the model's own class can be made without: all of a kind, or those called alike."""
    found: set[str] = set()
    if own_config(model) is None:
        return found
    for kind in dict.fromkeys(g.kind for g in groups):
        alike: dict[str, list[Group]] = {}
        for group in (g for g in groups if g.kind == kind):
            alike.setdefault(_DIGITS.sub("#", group.name), []).append(group)
        whole = [g for some in alike.values() for g in some]
        if can_be_made(model, _without_half(own, whole), made):
            found |= {g.name for g in whole}
            continue
        for some in alike.values() if len(alike) > 1 else ():
            if can_be_made(model, _without_half(own, some), made):
                found |= {g.name for g in some}
    return found


# Kinds that go together: heads of one size make up the width.
_TOGETHER: tuple[tuple[Kind, ...], ...] = (("heads", "width"), ("heads", "neurons", "width"))


def _together(
    model: Any, own: dict[str, Any], groups: tuple[Group, ...], refused: set[str], made: Made
) -> set[str]:
    """Names of the groups that the model's own class can only be made without if several kinds go at once."""
    found: set[str] = set()
    if own_config(model) is None:
        return found
    for kinds in _TOGETHER:
        some = [g for g in groups if g.kind in kinds]
        names = {g.name for g in some}
        if {g.kind for g in some} == set(kinds) and names & refused > found & names:
            found |= names if can_be_made(model, _without_half(own, some), made) else set()
    return found


def of_class(model: Any, groups: list[Group], counts: Mapping[str, int]) -> list[Group]:
    """Of groups that are to lose units, those without which the model's class can still be made; else all.

    Args:
        model: any functional model.
        groups: of it.
        counts: name of a group -> how many units it is to lose.
    """
    some = [g for g in groups if g.by_class]
    if not some or len(some) == len(groups) or {g.kind for g in some} != {g.kind for g in groups}:
        return groups
    own = {w.path: w for w in keras_api.weights(model)}
    if can_be_made(model, _without(own, groups, counts)) or not can_be_made(model, _without(own, some, counts)):
        return groups
    return some


def _without_half(own: dict[str, Any], groups: Sequence[Group]) -> dict[str, Shape]:
    return _without(own, groups, {g.name: g.units - max(1, g.units // 2) for g in groups})


def _without(own: dict[str, Any], groups: Sequence[Group], counts: Mapping[str, int]) -> dict[str, Shape]:
    """Path of a weight -> its shape without units of all of these groups."""
    shapes = {path: [int(d) for d in w.variable.shape] for path, w in own.items()}
    for group in groups:
        for path, at in {(s.path, s.axis) for s in group.slices}:
            shapes[path][at] = shapes[path][at] // group.units * (group.units - counts[group.name])
    return {path: tuple(shape) for path, shape in shapes.items()}


def _can_lose(
    group: Group, path: str, node: Any, *, own: dict[str, Any], tried: dict[Any, bool], made: Made
) -> bool:
    """Whether a layer can be made with half of the units of a group."""
    kept = max(1, group.units // 2)
    cut = {(s.path, s.axis): s.outer * kept * s.inner for s in group.slices}
    wanted: list[Shape] = []
    for weight_path, weight in own.items():
        if weight_path.startswith(f"{path}/"):
            shape = enumerate(map(int, weight.variable.shape))
            wanted.append(tuple(cut.get((weight_path, axis), size) for axis, size in shape))
    config = config_of_layer(node.operation) or {}
    key = (type(node.operation), repr({k: v for k, v in config.items() if k != "name"}), tuple(wanted))
    if key not in tried:
        tried[key] = kept < group.units and resized_config(node, wanted, made) is not None
    return tried[key]


def _residual(weights: dict[str, list[Axis]]) -> Factor | None:
    normed = [leaf for axes in weights.values() for leaf in leaves(*axes) if leaf.normed]
    counts = {id(leaf): sum(other is leaf for other in normed) for leaf in normed}
    return max(normed, key=lambda leaf: counts[id(leaf)], default=None)


# Layers that reshape to sizes of their inputs or weights, or that get new target shapes.
_FOLLOW = {
    "Activation", "AveragePooling1D", "AveragePooling2D", "BatchNormalization", "Conv1D", "Conv2D", "Conv3D",
    "Dense", "DepthwiseConv1D", "DepthwiseConv2D", "Dropout", "EinsumDense", "Embedding", "Flatten",
    "GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalMaxPooling1D", "GlobalMaxPooling2D",
    "GroupedQueryAttention", "LayerNormalization", "MaxPooling1D", "MaxPooling2D", "MultiHeadAttention", "PReLU",
    "Permute", "RMSNormalization", "Reshape", "SeparableConv1D", "SeparableConv2D", "Softmax",
}  # fmt: skip


def _maker(found: Trace, op: Any) -> Any:
    """The layer or Keras operation whose sizes an operation follows; inside another, the innermost."""
    owner = found.owner.get(op.name)
    return owner if type(owner).__name__ in ATTENTION else found.inner.get(op.name, owner)


def _is_layer(found: Trace, op: Any) -> bool:
    owner = _maker(found, op)
    return hasattr(owner, "_flatten_layers") and getattr(owner, "symbol", None) is None


def _may_reshape(found: Trace, op: Any) -> bool:
    """Whether a reshape takes its sizes from other tensors, or from a layer that can be made anew with others."""
    owner = _maker(found, op)
    if owner is None:
        return False
    if type(owner).__name__ == "Reshape" and keras_api.is_model(found.owner[op.name]):
        return False  # target shapes are made anew at the top only
    if not hasattr(owner, "_flatten_layers"):  # a Keras operation: only an explicit reshape has sizes of its own
        return type(owner).__name__ != "Reshape"
    symbol = getattr(owner, "symbol", None)  # likewise in tf_keras
    if symbol is not None:
        return symbol != "reshape"
    if keras_api.is_model(owner):  # an operation of Keras between its layers
        inner = (type(x).__name__ for _, x in keras_api.walk(owner) if x.weights or _has_shape(x))
        return all(name in _FOLLOW - {"Reshape"} for name in inner)
    return type(owner).__name__ in _FOLLOW


def _has_shape(layer: Any) -> bool:
    return type(layer).__name__ in ("Reshape", "Lambda", "TFOpLambda")


def _groups(own: dict[str, Any], walk: Walk) -> tuple[Group, ...]:
    slices: dict[int, list[Slices]] = {}
    factors: dict[int, Factor] = {}
    for path, axes in walk.weights.items():
        for index, one in enumerate(axes):
            parts = leaves(one)
            for position, leaf in enumerate(parts):
                around = [f.size for f in parts]
                outer, inner = math.prod(around[:position]), math.prod(around[position + 1 :])
                consumed = (path, index) in walk.consumed
                slices.setdefault(id(leaf), []).append(Slices(path, index, outer, inner=inner, consumed=consumed))
                factors[id(leaf)] = leaf
    groups: list[Group] = []
    for key, places in slices.items():
        factor = factors[key]
        made = [s for s in places if not s.consumed]
        summed = [s for s in places if s.consumed]
        if factor.fixed or not summed or not made:
            continue
        name = own[made[0].path].layer_path
        if any(g.name == name for g in groups):  # one layer may make units of several kinds
            name = f"{name}:{made[0].axis}:{made[0].outer}"
        groups.append(
            Group(name, _kind(factor, places, own, walk=walk), factor.size, slices=tuple(places), factor=factor)
        )
    return tuple(groups)


def _kind(factor: Factor, places: list[Slices], own: dict[str, Any], walk: Walk) -> Kind:
    if factor.normed:
        return "width"
    if factor.batched:
        return "heads"
    names = {type(own[s.path].layer).__name__ for s in places}
    if names & set(_CONVOLUTION):
        return "channels"
    beside = (  # what the same side of a product has besides
        leaf
        for s in places
        for index, one in enumerate(walk.weights[s.path])
        if ((s.path, index) in walk.consumed) == s.consumed
        for leaf in leaves(one)
    )
    return "head_size" if any(leaf.batched for leaf in beside) else "neurons"


def unit_view(array: np.ndarray, place: Slices, units: int) -> np.ndarray:
    """A weight as (units, everything else)."""
    shape = array.shape
    split = (*shape[: place.axis], place.outer, units, place.inner, *shape[place.axis + 1 :])
    return np.moveaxis(array.reshape(split), place.axis + 1, 0).reshape(units, -1)


def check_names(kind: str, shares: Mapping[str, float], groups: list[Group]) -> None:
    """Raises InputError for a name that no group of a kind has."""
    known = [g.name for g in groups]
    for name in shares:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.0)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(f"no layer {name!r} makes {kind} that can be taken out{hint}")


def why_none(kind: str, groups: list[Group], structure: Structure) -> str:
    """Why no units of a kind are taken out."""
    if groups:
        return f"{kind} are to be taken out, but include and exclude leave none of {len(groups)} groups"
    by_class = [(path, r) for path, reasons in structure.fixed.items() for r in reasons if _BY_CLASS in r]
    told = by_class or [(path, reasons[-1]) for path, reasons in structure.fixed.items()]
    why = "; ".join(f"{path}: {reason}" for path, reason in told[-3:])
    return f"the model has no {kind} that can be taken out" + (f" ({why})" if why else "")
