"""Where activations are rounded, told from what reads them in a functional model.

In subclassed models nothing tells who reads an output: there every output is rounded, to the bits asked for.
"""

from typing import Any

from tfopt._keras import keras_api
from tfopt.quantization.kinds import is_add, is_relu, linear_or_relu, role


def marks_output(node: Any) -> bool:
    """Whether the output of this node is rounded: not where a runtime fuses it into what follows."""
    readers = keras_api.consumers(node)
    if not readers or len(readers) > 1:
        return True
    kind = role(readers[0])
    if kind == "softmax":  # which rounds its own input, knowing what matters to it
        return False
    if is_relu(readers[0]):
        return role(node) not in ("product", "norm", "computes") or not linear_or_relu(node)
    folds = type(readers[0]).__name__ == "BatchNormalization" and role(node) == "product"
    return not (folds and linear_or_relu(node))


def feeds_norm(node: Any, through_add: bool = False) -> bool:
    """Whether a layer norm reads the output, as it is or, `through_add`, as a term of a sum."""
    for reader in keras_api.consumers(node):
        kind = role(reader)
        if kind == "norm" or (kind == "same" and feeds_norm(reader, through_add)):
            return True
        if through_add and is_add(reader) and feeds_norm(reader):
            return True
    return False


def makes_scores(node: Any) -> bool:
    """Whether the output is what a softmax reads, before a mask is added."""
    adds = [reader for reader in keras_api.consumers(node) if is_add(reader)]
    return any(role(reader) == "softmax" for add in adds for reader in keras_api.consumers(add))
