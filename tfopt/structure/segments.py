"""A functional model in pieces that run one after the other, each with the tensors it takes and gives."""

import dataclasses
import graphlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tfopt._keras import keras_api
from tfopt.errors import InputError
from tfopt.structure.nodes import Node, filled, flat, functional, given_by_input, nodes, struct_of


@dataclasses.dataclass(frozen=True)
class Segment:
    """Calls of a graph that run together.

    Attributes:
        nodes: the calls, in the order in which they run.
        takes: identities of the symbolic tensors that come from elsewhere.
        gives: of those that are needed elsewhere.
    """

    nodes: tuple[Node, ...]
    takes: tuple[int, ...]
    gives: tuple[int, ...]


def segments_of(model: Any, groups: Sequence[Iterable[Node]]) -> list[Segment]:
    """All calls of a functional model, in segments that can run in this order.

    Args:
        model: of either generation.
        groups: calls that are to be one segment, no call in two; what is in none is a segment by itself.

    Raises:
        graphlib.CycleError: a way through the graph leaves a group and comes back.
    """
    graph = [node for node in nodes(model) if node.operation is not None]
    group_of = {node.outputs: number for number, group in enumerate(groups) for node in group}
    parts: dict[Any, list[Node]] = {}
    for node in graph:
        parts.setdefault(group_of.get(node.outputs, node.outputs), []).append(node)
    maker = {out: part for part, some in parts.items() for node in some for out in node.outputs}
    before = {
        part: {maker[i] for node in some for i in node.inputs if i in maker and maker[i] != part}
        for part, some in parts.items()
    }
    wanted = {id(tensor) for tensor in flat(struct_of(functional(model), "outputs"))}
    readers: dict[int, set[Any]] = {}
    for part, some in parts.items():
        for node in some:
            for i in node.inputs:
                readers.setdefault(i, set()).add(part)
    found = []
    for part in graphlib.TopologicalSorter(before).static_order():
        made = [out for node in parts[part] for out in node.outputs]
        read = dict.fromkeys(i for node in parts[part] for i in node.inputs if i not in made)
        gives = tuple(out for out in made if out in wanted or readers.get(out, set()) - {part})
        found.append(Segment(tuple(parts[part]), tuple(read), gives))
    return found


def start_values(model: Any, given: Any) -> dict[int, Any]:
    """Tensors by identity of the symbolic inputs, as a model's own call would take them."""
    import tensorflow as tf

    symbolic = flat(struct_of(functional(model), "inputs"))
    values = given_by_input(model, given)
    return {id(s): tf.cast(value, s.dtype) for s, value in zip(symbolic, values, strict=True)}


def run_segment(segment: Segment, values: Mapping[int, Any], *, training: bool = True) -> list[Any]:
    """Runs the calls of a segment, within the call of a layer (`tfopt._keras.in_call`).

    Args:
        segment: of a functional model.
        values: tensor by identity, of all that the segment takes.
        training: whether the layer trains.

    Returns:
        The tensors that it gives.
    """
    known = {i: values[i] for i in segment.takes}
    for node in segment.nodes:
        arguments, keywords = node.fill(known)
        # Functional models of Keras 3 say so whatever a call was built with; those of tf_keras do not.
        if keras_api.generation_of(node.operation) == "keras" and "training" in getattr(
            node.operation, "_call_context_args", {}
        ):
            keywords = {**keywords, "training": training}
        known.update(zip(node.outputs, flat(node.operation(*arguments, **keywords)), strict=True))
    return [known[i] for i in segment.gives]


def outputs_from(model: Any, values: Mapping[int, Any]) -> Any:
    """The outputs of a model in their structure, from tensors by identity."""
    return filled(struct_of(functional(model), "outputs"), values)


def check_has_no_losses(graph: Any) -> None:
    """Looks for losses of what passes a layer, after it was called.

    Raises:
        InputError: there is one, which nobody would take the gradient of.
    """
    for path, layer in keras_api.walk(graph):
        if getattr(layer, "_losses", None) or getattr(layer, "activity_regularizer", None) is not None:
            raise InputError(
                f"layer {path!r} has a loss of what passes it, which only a model that is called as a whole learns"
            )
