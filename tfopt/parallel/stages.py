"""Cuts a transformer into stages of about equal work, and tells how long each waits for the others."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

from tfopt._keras import keras_api
from tfopt._keras.copying import copy_of
from tfopt.errors import InputError
from tfopt.structure.blocks import calls_of_blocks
from tfopt.structure.inlined import inlined
from tfopt.structure.nodes import Node, nodes


@dataclasses.dataclass(frozen=True)
class Stages:
    """Stretches of a graph, one for each device.

    Attributes:
        graph: functional model with every call spelled out.
        groups: the calls of each stage; all calls are in one.
        costs: multiplications of each stage for a token, as far as they are those of weights.
    """

    graph: Any
    groups: tuple[tuple[Node, ...], ...]
    costs: tuple[float, ...]

    def idle_share(self, micro_batches: int) -> float:
        """Share of the devices' time in which they wait, in [0, 1), by the schedule of GPipe."""
        return idle_share(self.costs, micro_batches)


def stages_of(model: Any, count: int) -> Stages:
    """Cuts the graph of a transformer between its layers.

    Args:
        model: functional, of either generation.
        count: of stages, 2 or more and at most as many as there are layers.

    Raises:
        InputError: a count outside its range, or a model whose layers are not known.
    """
    graph = inlined(model)
    inside = calls_of_blocks(graph)
    if not 2 <= count <= len(inside):
        raise InputError(
            f"stages must be 2 or more and at most the {len(inside)} layers of model {model.name!r} that repeat, "
            f"got {count}"
        )
    calls = [node for node in nodes(graph) if node.operation is not None]
    block_of = {node.outputs: number for number, some in enumerate(inside) for node in some}
    # What follows the last layer is with it; all else, as tables and masks, is with the first.
    last = {out for node in inside[-1] for out in node.outputs}
    own = {node.outputs for node in inside[-1]}
    behind = {i for node in calls if node.outputs not in own for i in node.inputs if i in last}
    place: dict[tuple[int, ...], int] = {}
    for node in calls:
        if behind & set(node.inputs):
            behind |= set(node.outputs)
            place[node.outputs] = len(inside) - 1
        else:
            place[node.outputs] = block_of.get(node.outputs, 0)
    costs = [0.0] * len(inside)
    for node in calls:
        costs[place[node.outputs]] += _cost(node)
    starts = _balanced(costs, count)
    stage_of_block = [sum(number >= start for start in starts[1:]) for number in range(len(inside))]
    groups: list[list[Node]] = [[] for _ in range(count)]
    for node in calls:
        groups[stage_of_block[place[node.outputs]]].append(node)
    ends = [*starts[1:], len(inside)]
    sums = tuple(sum(costs[start:end]) for start, end in zip(starts, ends, strict=True))
    return Stages(graph, tuple(map(tuple, groups)), costs=sums)


def placed(model: Any, devices: Sequence[str]) -> Any:
    """A copy of a transformer whose weights are on the devices that compute with them, a stage on each.

    Raises:
        InputError: more devices than layers, or a model whose configuration does not give a copy.
    """
    stages = stages_of(model, len(devices))
    device_of: dict[str, str] = {}
    for group, device in zip(stages.groups, devices, strict=True):
        for node in group:
            device_of.setdefault(node.operation.name, device)  # a table that two stages use is with the first
    if stages.graph is not model:
        raise InputError(f"model {model.name!r} calls other models, whose layers cannot be placed one by one")
    made = copy_of(model, device_of)
    if made is None:
        raise InputError(
            f"model {model.name!r} cannot be copied to devices: its layers need more than their configs"
        )
    return made


def idle_share(costs: Sequence[float], micro_batches: int) -> float:
    """Share of the time in which stages of such costs wait: all forward passes in turn, then all backward."""
    ready = [0.0] * len(costs)
    for _ in range(micro_batches):
        before = 0.0
        for stage, cost in enumerate(costs):
            before = ready[stage] = max(before, ready[stage]) + cost
    return 1.0 - micro_batches * sum(costs) / (len(costs) * ready[-1])


def _cost(node: Node) -> float:
    """Multiplications with weights for each token."""
    operation = node.operation
    if not hasattr(operation, "_flatten_layers"):
        return 0.0
    layers = [operation, *(layer for _, layer in keras_api.walk(operation))]
    tables = [v for layer in layers if hasattr(layer, "embeddings") for v in keras_api.own_variables(layer)]
    skipped = {id(v) for v in tables}
    found = {id(v): v for layer in layers for v in keras_api.own_variables(layer) if id(v) not in skipped}
    return float(sum(math.prod(v.shape) for v in found.values() if len(v.shape) > 1))


def _balanced(costs: Sequence[float], count: int) -> list[int]:
    """The first of each of `count` stretches whose largest sum is as small as it can be."""
    sums = [0.0, *itertools.accumulate(costs)]
    best: dict[tuple[int, int], tuple[float, list[int]]] = {(0, 0): (0.0, [])}
    for stretch, end in itertools.product(range(1, count + 1), range(1, len(costs) + 1)):
        found = [
            (max(best[stretch - 1, start][0], sums[end] - sums[start]), [*best[stretch - 1, start][1], start])
            for start in range(end)
            if (stretch - 1, start) in best
        ]
        if found:
            best[stretch, end] = min(found)
    return best[count, len(costs)][1]
