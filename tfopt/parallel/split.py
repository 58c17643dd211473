"""Tensor parallelism: the heads of attention and the neurons of feed-forward layers, spread over devices.

Shoeybi et al., "Megatron-LM", https://arxiv.org/abs/1909.08053: the layers that make heads or neurons are split by
columns, those that take them by rows, and the sums of the parts are what the whole layer gives. What is between is
computed for a device's own heads or neurons alone; all else is on the first device. The parts are layers of their
own in an ordinary Keras model, placed by hand: DTensor of TensorFlow 2.21 loses the order of writes and reads of
variables, crashes at slices that add an axis, and has no rule for fake quantization.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfopt._keras import keras_api
from tfopt._keras.copying import copy_of
from tfopt.errors import InputError
from tfopt.parallel.placed import Placed
from tfopt.structure.axes import leaves
from tfopt.structure.cut import Kept, cut
from tfopt.structure.groups import Group, Structure, structure_of
from tfopt.structure.inlined import inlined
from tfopt.structure.nodes import Node, filled, flat, functional, nodes, struct_of

_KINDS = ("heads", "neurons")


@dataclasses.dataclass(frozen=True)
class Split:
    """A model whose heads and neurons are spread over devices.

    Attributes:
        model: a Keras model with the parts as layers, and their weights on their devices.
        part_of: name of a layer that is a part -> its number.
        last: names of those whose sums are what a whole layer gives.
        rows: path of a weight of the unsplit model -> its axis, and for each part where it lies there.
    """

    model: Any
    part_of: Mapping[str, int]
    last: frozenset[str]
    rows: Mapping[str, tuple[int, tuple[np.ndarray, ...]]]

    def write_to(self, model: Any) -> None:
        """Gives the weights, as they are now, to the model that was split, or to one like it."""
        ours = {w.path: w.variable for w in keras_api.weights(self.model)}
        for weight in keras_api.weights(inlined(model)):
            layer, _, name = weight.path.rpartition("/")
            if weight.path not in self.rows:  # whole, or the bias that the first part alone has
                found = ours.get(weight.path, ours.get(f"{_part(layer, 0)}/{name}"))
                weight.variable.assign(keras_api.to_numpy(found))
                continue
            axis, places = self.rows[weight.path]
            value = np.moveaxis(keras_api.to_numpy(weight.variable).copy(), axis, 0)
            for number, place in enumerate(places):
                value[place] = np.moveaxis(keras_api.to_numpy(ours[f"{_part(layer, number)}/{name}"]), axis, 0)
            weight.variable.assign(np.moveaxis(value, 0, axis))


class TensorParallel(Placed):
    """A split model over its devices: answers and gradients are those of the unsplit model.

    Args:
        split: from `split`.
        lanes: devices of each replica, a name for each part; each computes its share of a batch with the weights of
            the first, so that lanes and parts are a mesh of data and model.
    """

    def __init__(self, split: Split, lanes: Sequence[Sequence[str]]) -> None:
        groups, places = _groups(split)
        super().__init__(split.model, split.model, groups=groups, places=places, lanes=lanes, micro_batches=1)


def split(model: Any, devices: Sequence[str]) -> Split:
    """Spreads a model over devices; it is not changed.

    Args:
        model: a functional transformer whose attention is spelled out, as `models.bert` and `models.causal_lm`
            build it.
        devices: names, 2 or more, a divisor of the number of heads; layers whose neurons it does not divide stay
            whole.

    Raises:
        InputError: heads that cannot be divided, or a model without heads and neurons between its layers.
    """
    count, graph = len(devices), inlined(model)
    structure = structure_of(graph)
    chosen = _chosen(model, structure, count)
    parts = [
        cut(graph, structure, Kept({g.name: _own(g.units, number, count) for g in chosen}))
        for number in range(count)
    ]
    made, part_of, last = _joined(graph, structure, chosen, parts=parts)
    placed = copy_of(made, {layer.name: devices[part_of.get(layer.name, 0)] for _, layer in keras_api.walk(made)})
    if placed is None:
        raise InputError(f"model {model.name!r} cannot be copied: its layers need more than their configurations")
    return Split(placed, part_of, frozenset(last), rows=_rows(chosen, count))


def _chosen(model: Any, structure: Structure, count: int) -> list[Group]:
    """The groups that are spread."""
    chosen: list[Group] = []
    taken: set[str] = set()
    for group in structure.groups:  # of dense layers in a row every other one's neurons: no weight is split twice
        paths = {place.path for place in group.slices}
        if group.kind in _KINDS and not paths & taken and (group.kind == "heads" or group.units % count == 0):
            chosen.append(group)
            taken |= paths
    if count < 2 or not chosen:
        raise InputError(
            f"tensor parallelism needs 2 devices or more, and layers that make heads or neurons for others: got "
            f"{count}, and model {model.name!r} has {len(chosen)}"
        )
    uneven = [group for group in chosen if group.units % count]
    if uneven:
        group = uneven[0]
        raise InputError(
            f"the {group.units} heads of {group.name!r} cannot be divided among {count} devices; take a divisor"
        )
    return chosen


def _own(units: int, number: int, count: int) -> np.ndarray:
    return np.arange(units * number // count, units * (number + 1) // count)


def _rows(chosen: Sequence[Group], count: int) -> dict[str, tuple[int, tuple[np.ndarray, ...]]]:
    """Where the parts lie in the weights."""
    found: dict[str, tuple[int, tuple[np.ndarray, ...]]] = {}
    for group in chosen:
        for place in group.slices:
            of = np.arange(place.outer * group.units * place.inner) // place.inner % group.units
            found[place.path] = (
                place.axis,
                tuple(np.flatnonzero(np.isin(of, _own(group.units, number, count))) for number in range(count)),
            )
    return found


def _joined(
    graph: Any, structure: Structure, chosen: Sequence[Group], *, parts: Sequence[Any]
) -> tuple[Any, dict[str, int], set[str]]:
    """One model of all parts, the part of each layer by name, and the layers whose sums are taken."""
    keras = keras_api.keras_module(keras_api.generation_of(graph))
    roots = {id(group.factor.root) for group in chosen}
    parted = sorted({s.path for group in chosen for s in group.slices})
    consumed = {s.path.rpartition("/")[0] for group in chosen for s in group.slices if s.consumed}
    pairs = [_counterparts(graph, part) for part in parts]
    inputs = struct_of(functional(parts[0]), "inputs")
    # Symbolic tensor of the graph -> its value, or that of each part.
    values: dict[int, Any] = {
        id(old): new for old, new in zip(flat(struct_of(functional(graph), "inputs")), flat(inputs), strict=True)
    }
    part_of: dict[str, int] = {}
    last: set[str] = set()
    sums: Counter[str] = Counter()
    layers: dict[str, Any] = {}  # of parts, by name: one that is called twice is one

    def is_split(tensor: int) -> bool:
        axes = structure.axes[structure.trace.tensors[tensor].name]
        return any(id(leaf.root) in roots for leaf in leaves(*axes))

    for node in nodes(graph):
        if node.operation is None:
            continue
        inside, ends = any(map(is_split, node.outputs)), any(map(is_split, node.inputs))
        if not inside and not ends:
            hidden = [path for path in parted if path.startswith(f"{node.operation.name}/")]
            if hidden:
                raise InputError(
                    f"layer {node.operation.name!r} of class {type(node.operation).__name__} has heads or neurons "
                    f"inside ({hidden[0]}), where they cannot be split; build attention of dense layers"
                )
            result = _called(pairs[0][node.outputs], node, values, number=0)
            values.update(zip(node.outputs, result, strict=True))
            continue
        if not inside and node.operation.name not in consumed:
            raise InputError(
                f"layer {node.operation.name!r} of class {type(node.operation).__name__} takes heads or neurons of "
                "all devices at once; the model cannot be split"
            )
        results = []
        for number, counterparts in enumerate(pairs):
            other = counterparts[node.outputs]
            layer = other.operation
            if hasattr(layer, "_flatten_layers"):
                name = _part(node.operation.name, number)
                if name not in layers:
                    layers[name] = _renamed(layer, name, sums=not inside, first=number == 0)
                layer = layers[name]
                part_of[layer.name] = number
                last |= set() if inside else {layer.name}
            else:  # an operation of Keras 3, which is this model's own
                layer.name = _part(node.operation.name, number)
            results.append(_called(other, node, values, number=number, layer=layer))
        each = list(zip(*results, strict=True))
        made = each if inside else [_summed(keras, node.operation, some, sums=sums) for some in each]
        values.update(zip(node.outputs, made, strict=True))
    outputs = filled(struct_of(functional(graph), "outputs"), values)
    return keras.Model(inputs, outputs, name=graph.name), part_of, last


def _called(node: Node, old: Node, values: Mapping[int, Any], *, number: int, layer: Any = None) -> list[Any]:
    """What a call of a part gives for the values of one part."""
    given = {
        new: values[i][number] if isinstance(values[i], tuple) else values[i]
        for i, new in zip(old.inputs, node.inputs, strict=True)
    }
    arguments, keywords = node.fill(given)
    return flat((layer or node.operation)(*arguments, **keywords))


def _counterparts(graph: Any, part: Any) -> dict[tuple[int, ...], Node]:
    """Outputs of each call in a graph -> the same call in a model that was cut out of it."""
    new_of = {
        id(old): id(new)
        for old, new in zip(
            flat(struct_of(functional(graph), "inputs")), flat(struct_of(functional(part), "inputs")), strict=True
        )
    }
    found: dict[tuple[int, ...], Node] = {}
    waiting = [node for node in nodes(part) if node.operation is not None]
    for node in nodes(graph):
        if node.operation is None:
            continue
        wanted = tuple(new_of[i] for i in node.inputs)
        other = next(n for n in waiting if n.inputs == wanted and _alike(n.operation, node.operation))
        waiting.remove(other)
        new_of.update(zip(node.outputs, other.outputs, strict=True))
        found[node.outputs] = other
    return found


def _alike(new: Any, old: Any) -> bool:
    return type(new) is type(old) and (new.name == old.name or not getattr(old, "weights", None))


def _renamed(layer: Any, name: str, *, sums: bool, first: bool) -> Any:
    """A layer of the same weights and another name.

    Args:
        layer: of a part.
        name: of the new one.
        sums: whether its results are summed over the parts, after which its activation follows.
        first: whether it is of the part that has the bias then.
    """
    config = {**layer.get_config(), "name": name}
    if sums and "activation" in config:
        config["activation"] = "linear"
    without = [key for key in ("use_bias", "bias_axes") if config.get(key)] if sums and not first else []
    config |= {key: None if key == "bias_axes" else False for key in without}
    made = type(layer).from_config(config)
    if layer.weights:
        made.build_from_config(layer.get_build_config())
        for new, old in zip(keras_api.weights(made), keras_api.weights(layer), strict=not without):
            new.variable.assign(keras_api.to_numpy(old.variable))
    return made


def _summed(keras: Any, layer: Any, parts: Sequence[Any], sums: Counter[str]) -> Any:
    """What a whole layer gives, from what its parts do; `sums` counts its calls."""
    activation = getattr(layer, "activation", None)
    linear = activation is None or activation is keras.activations.linear
    sums[layer.name] += 1
    again = f"_{sums[layer.name]}" if sums[layer.name] > 1 else ""
    total = keras.layers.Add(name=f"{layer.name}_sum{again}")(list(parts))
    return total if linear else keras.layers.Activation(activation, name=f"{layer.name}_of_sum{again}")(total)


def _part(name: str, number: int) -> str:
    return f"{name}_part_{number}"


def _groups(split: Split) -> tuple[list[list[Node]], list[int]]:
    """Calls that run together, and the part that each group of them is of."""
    made: dict[int, tuple[int, int | None, bool]] = {}  # tensor -> depth, part or None, and whether a sum follows
    groups: dict[tuple[int, int | None], list[Node]] = {}
    for node in nodes(split.model):
        if node.operation is None:
            made.update((out, (0, None, False)) for out in node.outputs)
            continue
        before = [made[i] for i in node.inputs]
        part = split.part_of.get(node.operation.name)
        if part is None:
            part = next((p for _, p, ends in before if p is not None and not ends), None)
        depth = max((d + (p != part) for d, p, _ in before), default=0)
        ends = node.operation.name in split.last
        made.update((out, (depth, part, ends)) for out in node.outputs)
        groups.setdefault((depth, part), []).append(node)
    return list(groups.values()), [part or 0 for _, part in groups]
