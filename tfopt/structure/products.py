"""What products and convolutions do to axes; see `rules`."""

from typing import Any

from tfopt.structure.axes import Axis, leaves, unify
from tfopt.structure.walk import Walk, fresh, norm_over


def bias(walk: Walk, op: Any) -> None:
    value, added = walk.of(op.inputs[0]), walk.of(op.inputs[1])
    unify(value[_channel_axis(op)], added[0])
    walk.give(op.outputs[0], list(value))


def _channel_axis(op: Any) -> int:
    return 1 if op.get_attr("data_format") == b"NCHW" else -1


def matmul(walk: Walk, op: Any) -> None:
    """Products of matrices, or of stacks of them."""
    batched = op.type != "MatMul"
    flags = ("adj_x", "adj_y") if batched else ("transpose_a", "transpose_b")
    left, right = (list(walk.of(tensor)) for tensor in op.inputs)
    places = []
    for tensor, axes, flag, summed in zip(op.inputs, (left, right), flags, (-1, -2), strict=True):
        turned = op.get_attr(flag)
        if turned:
            axes[-2:] = axes[:-3:-1]
        places.append((tensor, {-1: -2, -2: -1}[summed] if turned else summed))
    unify(left[-1], right[-2])
    for tensor, position in places:
        walk.consume(tensor, position)
    result: list[Axis] = [()] * max(len(left), len(right))
    for axes in (left, right):
        for position in range(3, len(axes) + 1):
            if axes[-position]:
                if result[-position]:
                    unify(result[-position], axes[-position])
                    _side_by_side(result[-position])
                result[-position] = axes[-position]
    result[-2:] = [left[-2], right[-1]]
    walk.give(op.outputs[0], result)


def _side_by_side(one: Axis) -> None:
    for leaf in leaves(one):
        leaf.batched = True


def einsum(walk: Walk, op: Any) -> None:
    operands, _, result = op.get_attr("equation").decode().replace(" ", "").partition("->")
    if "." in operands:
        walk.unknown(op)
        return
    known: dict[str, Axis] = {}
    terms = operands.split(",")
    for tensor, term in zip(op.inputs, terms, strict=True):
        for position, (letter, one) in enumerate(zip(term, walk.of(tensor), strict=True)):
            if letter in known:
                unify(known[letter], one)
            known[letter] = known.get(letter) or one
            if letter not in result:
                walk.consume(tensor, position)
    for letter in result:
        if all(letter in term for term in terms) and not any(t.name in walk.places for t in op.inputs):
            _side_by_side(known[letter])
    walk.give(op.outputs[0], [known[letter] for letter in result])


def convolution(walk: Walk, op: Any) -> None:
    value, kernel = walk.of(op.inputs[0]), walk.of(op.inputs[1])
    channel = _channel_axis(op)
    unify(value[channel], kernel[-2])
    walk.consume(op.inputs[1], len(kernel) - 2)
    result = fresh(op.outputs[0])
    result[0], result[channel] = value[0], kernel[-1]
    walk.give(op.outputs[0], result)


def depthwise(walk: Walk, op: Any) -> None:
    value, kernel = walk.of(op.inputs[0]), walk.of(op.inputs[1])
    channel = _channel_axis(op)
    unify(value[channel], kernel[-2])
    result = fresh(op.outputs[0])
    result[0], result[channel] = value[0], (*kernel[-2], *kernel[-1])
    walk.give(op.outputs[0], result)


def pool(walk: Walk, op: Any) -> None:
    channel = _channel_axis(op)
    value, result = walk.of(op.inputs[0]), fresh(op.outputs[0])
    result[0], result[channel] = value[0], value[channel]
    walk.give(op.outputs[0], result)


def batch_norm(walk: Walk, op: Any) -> None:
    """Statistics over all axes but the channels while training, which layer norms use as well."""
    value, channel = walk.of(op.inputs[0]), _channel_axis(op)
    for tensor in op.inputs[1:]:
        for one in walk.of(tensor):
            if one:
                unify(value[channel], one)
    if op.get_attr("is_training"):
        others = [one for i, one in enumerate(value) if i != channel % len(value)]
        norm_over(others)
    for i, tensor in enumerate(op.outputs):
        walk.give(tensor, list(value) if i == 0 else fresh(tensor))
