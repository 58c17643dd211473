"""What each TensorFlow operation does to axes; one function per kind of operation."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt.structure.axes import Axis, axis, fix, leaves, regroup, unify
from tfopt.structure.products import batch_norm, bias, convolution, depthwise, einsum, matmul, pool
from tfopt.structure.walk import Place, Walk, fresh, norm_over


def apply(walk: Walk, op: Any) -> None:
    """Gives axes to the outputs of an operation whose inputs have theirs."""
    rule = RULES.get(op.type)
    if rule is None or any(_is_vague(tensor) for tensor in op.inputs):
        walk.unknown(op)
    else:
        rule(walk, op)


def _is_vague(tensor: Any) -> bool:
    """Whether sizes of a tensor depend on what is in others, as where strings are compared."""
    return tensor.dtype not in (tf.resource, tf.variant) and not tensor.shape.is_fully_defined()


def only_shape(walk: Walk, op: Any) -> None:
    """The output depends on sizes alone."""
    for tensor in op.outputs:
        walk.give(tensor, fresh(tensor))


def read_variable(walk: Walk, op: Any) -> None:
    (output,) = op.outputs
    if op.name not in walk.variables:  # a counter or the like
        walk.give(output, fresh(output, "it is no weight of a layer"))
        return
    walk.give(output, walk.read(op))
    path = walk.variables[op.name]
    walk.places[output.name] = [frozenset({(path, i)}) for i in range(output.shape.rank)]


def constant(walk: Walk, op: Any) -> None:
    """Equal values inside a layer fit any size; others would have to be cut in the model's configuration."""
    (output,) = op.outputs
    value = tf.get_static_value(output)
    array = np.asarray(0 if value is None else value)
    uniform = array.size < 2 or (walk.is_layer(op) and (array == array.flat[0]).all())
    walk.give(output, fresh(output, None if uniform else "a constant has its size"))


def same(walk: Walk, op: Any) -> None:
    """Every output has the axes of the first input."""
    for tensor in op.outputs:
        walk.give(tensor, list(walk.of(op.inputs[0])))
    if op.inputs[0].name in walk.places:
        walk.places[op.outputs[0].name] = walk.places[op.inputs[0].name]


def each(walk: Walk, op: Any) -> None:
    """Every output has the axes of its own input."""
    for given, tensor in zip(op.inputs, op.outputs, strict=True):
        walk.give(tensor, list(walk.of(given)))


def elementwise(walk: Walk, op: Any) -> None:
    """Broadcast from the right."""
    (output,) = op.outputs
    result: list[Axis] = [()] * output.shape.rank
    for tensor in op.inputs:
        for position, one in enumerate(reversed(walk.of(tensor)), 1):
            if not one:
                continue
            if result[-position]:
                unify(result[-position], one)
            result[-position] = one
    walk.give(output, result)


def reduction(walk: Walk, op: Any) -> None:
    value, over = walk.of(op.inputs[0]), tf.get_static_value(op.inputs[1])
    if over is None:
        walk.unknown(op)
        return
    reduced = {int(i) % max(len(value), 1) for i in np.atleast_1d(over)}
    norm_over([value[i] for i in reduced])
    kept = op.get_attr("keep_dims")
    result = [() if i in reduced else one for i, one in enumerate(value) if kept or i not in reduced]
    walk.give(op.outputs[0], result)


def softmax(walk: Walk, op: Any) -> None:
    value = walk.of(op.inputs[0])
    fix("a softmax runs over it", value[-1])
    walk.give(op.outputs[0], list(value))


def transpose(walk: Walk, op: Any) -> None:
    order, value = tf.get_static_value(op.inputs[1]), walk.of(op.inputs[0])
    if order is None:
        walk.unknown(op)
        return
    walk.give(op.outputs[0], [value[i] for i in order])
    if op.inputs[0].name in walk.places:
        places = walk.places[op.inputs[0].name]
        walk.places[op.outputs[0].name] = [places[i] for i in order]


def reshape(walk: Walk, op: Any) -> None:
    """Splits and joins factors; sizes that stand in the model's configuration can only change in known layers."""
    value, (output,) = walk.of(op.inputs[0]), op.outputs
    result = regroup(value, [int(d) for d in output.shape]) if output.shape.is_fully_defined() else None
    if result is None:
        walk.unknown(op)
        return
    if _changes(value, result) and not walk.may_reshape(op):
        fix("an operation reshapes it to sizes of its own", *result)
    walk.give(output, result)
    if op.inputs[0].name in walk.places:
        # A reshape keeps the order of factors.
        source = walk.places[op.inputs[0].name]
        of_leaves = iter([place for place, one in zip(source, value, strict=True) for _ in leaves(one)])
        joined = [[next(of_leaves) for _ in leaves(one)] for one in result]
        walk.places[output.name] = [frozenset[Place]().union(*some) for some in joined]


def _changes(before: list[Axis], after: list[Axis]) -> bool:
    return [f for f in map(leaves, before) if f] != [f for f in map(leaves, after) if f]


def gather(walk: Walk, op: Any) -> None:
    """Rows of a table by index."""
    by_handle = op.type == "ResourceGather"
    table, indices = walk.read(op) if by_handle else walk.of(op.inputs[0]), walk.of(op.inputs[1])
    where = 0 if by_handle else tf.get_static_value(op.inputs[2])
    batch = op.get_attr("batch_dims")
    if where != 0 or batch or not table:
        if table and where is not None and not batch:  # columns chosen: only what is chosen from is fixed
            fix("single places of it are chosen", table[int(where) % len(table)])
            at = int(where) % len(table)
            walk.give(op.outputs[0], [*table[:at], *indices, *table[at + 1 :]])
            return
        walk.unknown(op)
        return
    fix("its rows are looked up by number", table[0])
    walk.give(op.outputs[0], [*indices, *table[1:]])


def strided_slice(walk: Walk, op: Any) -> None:
    """Axes that are taken whole stay; of the others a part is used."""
    value = walk.of(op.inputs[0])
    begin, end, stride = (tf.get_static_value(tensor) for tensor in op.inputs[1:4])
    if begin is None or end is None or stride is None:
        walk.unknown(op)
        return
    result: list[Axis] = []
    at = 0
    masks = {name: op.get_attr(f"{name}_mask") for name in ("begin", "end", "new_axis", "shrink_axis", "ellipsis")}
    for i in range(len(begin)):
        if masks["ellipsis"] >> i & 1:  # all axes that those behind it leave
            behind = sum(not masks["new_axis"] >> j & 1 for j in range(i + 1, len(begin)))
            result += value[at : len(value) - behind]
            at = len(value) - behind
            continue
        if masks["new_axis"] >> i & 1:
            result.append(())
            continue
        size = int(op.inputs[0].shape[at])
        whole = (masks["begin"] >> i & 1 or begin[i] == 0) and (masks["end"] >> i & 1 or end[i] >= size)
        if masks["shrink_axis"] >> i & 1:
            fix("one place of it is taken", value[at])
        elif whole and stride[i] == 1:
            result.append(value[at])
        else:
            fix("a part of it is taken", value[at])
            result.append(axis(int(op.outputs[0].shape[len(result)]), "it is a part of an axis"))
        at += 1
    walk.give(op.outputs[0], result + value[at:])


def plain_slice(walk: Walk, op: Any) -> None:
    """As a strided one."""
    value = walk.of(op.inputs[0])
    if not _is_known(op):
        walk.unknown(op)
        return
    sizes = [(int(a), int(b)) for a, b in zip(op.inputs[0].shape, op.outputs[0].shape, strict=True)]
    asked = tf.get_static_value(op.inputs[2])
    for one, size in zip(value, np.full(len(value), -1) if asked is None else asked, strict=True):
        if size != -1 and not walk.may_reshape(op):
            fix("a part of a size of its own is taken", one)
    walk.give(op.outputs[0], _parts(value, sizes))


def _is_known(op: Any) -> bool:
    """Whether all sizes are."""
    return all(t.shape.rank is not None and None not in tuple(t.shape) for t in (*op.inputs, *op.outputs))


def split(walk: Walk, op: Any) -> None:
    """Every output has a part of one axis, and all of the others."""
    if not _is_known(op):
        walk.unknown(op)
        return
    value = walk.of(op.inputs[1] if op.type == "Split" else op.inputs[0])
    given = (op.inputs[1] if op.type == "Split" else op.inputs[0]).shape
    for output in op.outputs:
        sizes = [(int(a), int(b)) for a, b in zip(given, output.shape, strict=True)]
        walk.give(output, _parts(value, sizes))


def unpack(walk: Walk, op: Any) -> None:
    if not _is_known(op):
        walk.unknown(op)
        return
    value, where = walk.of(op.inputs[0]), op.get_attr("axis") % op.inputs[0].shape.rank
    fix("single places of it are taken", value[where])
    for output in op.outputs:
        walk.give(output, [one for i, one in enumerate(value) if i != where])


def pad(walk: Walk, op: Any) -> None:
    """Axes that get no more places stay."""
    if not _is_known(op):
        walk.unknown(op)
        return
    sizes = [(int(a), int(b)) for a, b in zip(op.inputs[0].shape, op.outputs[0].shape, strict=True)]
    walk.give(op.outputs[0], _parts(walk.of(op.inputs[0]), sizes))


def _parts(value: list[Axis], sizes: list[tuple[int, int]]) -> list[Axis]:
    """The axes of a result: the same where the size is, else new ones whose sizes stand somewhere."""
    result = []
    for one, (before, after) in zip(value, sizes, strict=True):
        if before == after:
            result.append(one)
        else:
            fix("a part of it is taken", one)
            result.append(axis(after, "it is a part of an axis"))
    return result


def concat(walk: Walk, op: Any) -> None:
    parts, where = op.inputs[:-1], tf.get_static_value(op.inputs[-1])
    (output,) = op.outputs
    if where is None or not output.shape.rank:
        walk.unknown(op)
        return
    where = int(where) % output.shape.rank
    result = list(walk.of(parts[0]))
    for tensor in parts:
        axes = walk.of(tensor)
        fix("it is joined with others", axes[where])
        for i, one in enumerate(axes):
            if i != where and one and result[i]:
                unify(result[i], one)
    result[where] = axis(int(output.shape[where]), "it is joined from others")
    walk.give(output, result)


def tile(walk: Walk, op: Any) -> None:
    """Repetition along axes of size 1 makes new factors, whose sizes stand in the configuration."""
    value, (output,) = walk.of(op.inputs[0]), op.outputs
    result = []
    for i, one in enumerate(value):
        before, after = int(op.inputs[0].shape[i]), int(output.shape[i])
        if before == after:
            result.append(one)
        elif before == 1:
            result.append(axis(after, "it is repeated so often"))
        else:
            fix("it is repeated", one)
            result.append(axis(after, "it is repeated"))
    walk.give(output, result)


def broadcast(walk: Walk, op: Any) -> None:
    value, (output,) = walk.of(op.inputs[0]), op.outputs
    result = [axis(int(size), "it is broadcast") for size in output.shape]
    for position, one in enumerate(reversed(value), 1):
        if one:
            result[-position] = one
    walk.give(output, result)


def pack(walk: Walk, op: Any) -> None:
    value, (output,) = walk.of(op.inputs[0]), op.outputs
    for tensor in op.inputs[1:]:
        for one, other in zip(value, walk.of(tensor), strict=True):
            if one and other:
                unify(one, other)
    where = op.get_attr("axis") % output.shape.rank
    result = list(value)
    result.insert(where, axis(int(output.shape[where]), "it is packed"))
    walk.give(output, result)


_SAME = (
    "Identity", "StopGradient", "Cast", "Relu", "Relu6", "LeakyRelu", "Elu", "Selu", "Sigmoid", "Tanh", "Exp",
    "Log", "Sqrt", "Rsqrt", "Square", "Neg", "Abs", "Erf", "Erfc", "Softplus", "Softsign", "Sin", "Cos",
    "Reciprocal", "Sign", "Floor", "Log1p", "Expm1", "LogicalNot", "IsNan", "IsFinite", "Cumsum", "ZerosLike",
    "OnesLike", "PlaceholderWithDefault",
)  # fmt: skip
_ELEMENTWISE = (
    "Add", "AddV2", "Sub", "Mul", "RealDiv", "Div", "DivNoNan", "Maximum", "Minimum", "SquaredDifference", "Pow",
    "SelectV2", "Select", "Less", "LessEqual", "Greater", "GreaterEqual", "Equal", "NotEqual", "LogicalAnd",
    "LogicalOr", "FloorDiv", "FloorMod", "AddN",
)  # fmt: skip
RULES: dict[str, Callable[[Walk, Any], None]] = {
    **dict.fromkeys(_SAME, same),
    **dict.fromkeys(_ELEMENTWISE, elementwise),
    **dict.fromkeys(("Shape", "Size", "Rank", "Range", "Fill", "NoOp"), only_shape),
    **dict.fromkeys(("MatMul", "BatchMatMulV2", "BatchMatMulV3"), matmul),
    **dict.fromkeys(("Conv2D", "Conv3D"), convolution),
    **dict.fromkeys(("MaxPool", "AvgPool", "MaxPool3D", "AvgPool3D"), pool),
    **dict.fromkeys(("Mean", "Sum", "Max", "Min", "Prod", "Any", "All"), reduction),
    **dict.fromkeys(("Softmax", "LogSoftmax"), softmax),
    **dict.fromkeys(("Reshape", "ExpandDims", "Squeeze"), reshape),
    **dict.fromkeys(("GatherV2", "ResourceGather"), gather),
    "BiasAdd": bias,
    "BroadcastTo": broadcast,
    "ConcatV2": concat,
    "Const": constant,
    "DepthwiseConv2dNative": depthwise,
    "Einsum": einsum,
    "FusedBatchNormV3": batch_norm,
    "IdentityN": each,
    "Pack": pack,
    **dict.fromkeys(("Pad", "PadV2", "MirrorPad"), pad),
    "ReadVariableOp": read_variable,
    "Slice": plain_slice,
    **dict.fromkeys(("Split", "SplitV"), split),
    "StridedSlice": strided_slice,
    "Tile": tile,
    "Transpose": transpose,
    "Unpack": unpack,
}
