"""The tensors of a transformer that another one can learn from: hidden states, attention, values, embeddings."""

import dataclasses
from typing import Any

from tfopt.errors import InputError
from tfopt.structure.blocks import Block, blocks_of
from tfopt.structure.groups import Structure, structure_of
from tfopt.structure.nodes import Node, nodes


@dataclasses.dataclass(frozen=True)
class Features:
    """Symbolic tensors of a functional model.

    Attributes:
        embeddings: what the first layer takes, (batch, length, width).
        hidden: what each layer gives, likewise.
        attention: probabilities of each layer, (batch, heads, length, length), or None where they cannot be seen.
        values: what each layer's attention weighs, (batch, heads, length, size), or None likewise.
        pools_early: whether one more layer follows, which computes one token and so has no state of all.
    """

    embeddings: Any
    hidden: tuple[Any, ...]
    attention: tuple[Any | None, ...]
    values: tuple[Any | None, ...]
    pools_early: bool


def features_of(model: Any) -> Features:
    """Finds them in the graph of a transformer.

    Raises:
        InputError: the model has no layers that repeat.
    """
    structure = structure_of(model)
    blocks = blocks_of(model, structure)
    if not blocks:
        raise InputError(
            f"model {model.name!r} has no layers of attention between tensors of one shape, whose states could be "
            "seen; only its outputs can be distilled"
        )
    graph = list(nodes(model))
    tensors = {out: tensor for node in graph for out, tensor in zip(node.outputs, node.symbolic, strict=True)}
    inside = {name for block in blocks for name in block.names}
    heads = (group.name.partition("/")[0] for group in structure.groups if group.kind == "heads")
    pools_early = any(name not in inside for name in heads)
    seen = [_attention(graph, block, structure) for block in blocks]
    return Features(
        tensors[blocks[0].start], tuple(tensors[block.end] for block in blocks),
        tuple(maps for maps, _ in seen), values=tuple(values for _, values in seen), pools_early=pools_early,
    )  # fmt: skip


def _attention(graph: list[Node], block: Block, structure: Structure) -> tuple[Any, Any]:
    """Attention probabilities of a layer and the values they weigh, where both are nodes of the graph."""
    for node in graph:
        is_softmax = any(structure.trace.tensors[out].op.type == "Softmax" for out in node.outputs)
        if not is_softmax or not set(node.outputs) & set(block.tensors):
            continue
        (maps,) = node.outputs
        reader = next((n for n in graph if maps in n.inputs and len(n.inputs) == 2), None)
        other = next((i for i in reader.inputs if i != maps), None) if reader else None
        found = {out: t for n in graph for out, t in zip(n.outputs, n.symbolic, strict=True)}
        return node.symbolic[0], None if other is None else found[other]
    return None, None
