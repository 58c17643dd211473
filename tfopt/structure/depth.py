"""How far each weight of a transformer is from its outputs."""

from typing import Any

from tfopt._keras import keras_api
from tfopt.errors import InputError
from tfopt.structure.blocks import blocks_of
from tfopt.structure.groups import structure_of
from tfopt.structure.nodes import nodes


def depth_of_weights(model: Any) -> dict[str, int]:
    """Path of a weight -> how many layers are between it and what stands on the last one, which has 0.

    The last layer has 1, the first as many as there are layers, and what comes before it, as tables, one more.

    Raises:
        InputError: the model has no layers that repeat.
    """
    blocks = blocks_of(model, structure_of(model))
    if not blocks:
        raise InputError(
            f"model {model.name!r} has no layers of attention between tensors of one shape, which could be counted"
        )
    count = len(blocks)
    depths = {name: count - number for number, block in enumerate(blocks) for name in block.names}
    before = True
    for node in nodes(model):
        if before and node.operation is not None:
            depths.setdefault(node.operation.name, count + 1)
        before = before and blocks[0].start not in node.outputs
    return {w.path: depths.get(w.path.partition("/")[0], 0) for w in keras_api.weights(model)}
