"""Operators that TFLite lacks, written with those that it has, in a SavedModel that is to be converted.

The other way, "Flex" operators of TensorFlow inside the file, cannot be checked here: the interpreters of LiteRT,
and of TensorFlow from 2.20 on, come without them (https://github.com/google-ai-edge/LiteRT/issues/6458).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

_PATCHES, _COUNTS = "ExtractImagePatches", "DenseBincount"


def lower(folder: Path) -> None:
    """Rewrites what cannot be converted in the functions of a SavedModel, in place; the rest stays as it is."""
    from tensorflow.core.protobuf import saved_model_pb2

    file = folder / "saved_model.pb"
    proto = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    changed = False
    for graph in proto.meta_graphs:
        for function in graph.graph_def.library.function:
            for node in [n for n in function.node_def if n.op == _PATCHES]:
                changed |= _lower_patches(function, node)
            for node in [n for n in function.node_def if n.op == _COUNTS]:
                changed |= _lower_counts(function, node)
            changed |= _keep_roots_finite(function)
    if changed:
        file.write_bytes(proto.SerializeToString())


def _lower_patches(function: Any, node: Any) -> bool:
    """Patches of an image: blocks that do not overlap move to the depth, others are a convolution that copies."""
    rows, columns = node.attr["ksizes"].list.i[1:3]
    strides, rates = list(node.attr["strides"].list.i), list(node.attr["rates"].list.i)
    padding, kind = node.attr["padding"].s.decode(), node.attr["T"].type
    shapes = node.attr["_output_shapes"].list.shape
    depth = shapes[0].dim[3].size if shapes and len(shapes[0].dim) == 4 else -1
    if depth < 1 or kind != tf.float32.as_datatype_enum:
        return False
    channels = depth // (rows * columns)
    kernel = np.eye(depth, dtype=np.float32).reshape(rows, columns, channels, depth)
    constant = function.node_def.add(name=f"{node.name}/kernel", op="Const")
    constant.attr["dtype"].type = kind
    constant.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(kernel))
    images = node.input[0]
    kept = {name: node.attr[name] for name in ("T", "padding", "_output_shapes") if name in node.attr}
    new = type(node)(name=node.name, op="Conv2D", input=[images, f"{constant.name}:output:0"])
    for name, value in kept.items():
        new.attr[name].CopyFrom(value)
    new.attr["strides"].list.i.extend(strides)
    new.attr["dilations"].list.i.extend(rates)
    new.attr["padding"].s = padding.encode()
    new.attr["data_format"].s = b"NHWC"
    new.attr["explicit_paddings"].list.SetInParent()
    new.attr["use_cudnn_on_gpu"].b = True
    old = f"{node.name}:patches:"
    node.CopyFrom(new)
    _rename(function, old, f"{node.name}:output:")
    return True


def _lower_counts(function: Any, node: Any) -> bool:
    """How often, or whether, each id is in a row: a row of one 1 for each, and their sum or largest."""
    shapes, kind = node.attr["_output_shapes"].list.shape, node.attr["T"]
    weights = {n.name: n for n in function.node_def}.get(_maker(node.input[2]))
    is_plain = (
        weights is not None and weights.op == "Const" and not tf.make_ndarray(weights.attr["value"].tensor).size
    )
    if not (is_plain and shapes and len(shapes[0].dim) == 2):
        return False
    ids, size = node.input[:2]

    def constant(name: str, value: Any) -> str:
        made = function.node_def.add(name=f"{node.name}/{name}", op="Const")
        made.attr["dtype"].type = tf.as_dtype(value.dtype).as_datatype_enum
        made.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
        return f"{made.name}:output:0"

    cast = function.node_def.add(name=f"{node.name}/depth", op="Cast", input=[size])
    cast.attr["SrcT"].CopyFrom(node.attr["Tidx"])
    cast.attr["DstT"].type = tf.int32.as_datatype_enum
    dtype = tf.as_dtype(kind.type).as_numpy_dtype
    ends = [constant("one", np.array(1, dtype)), constant("zero", np.array(0, dtype))]
    hot = function.node_def.add(name=f"{node.name}/hot", op="OneHot", input=[ids, f"{cast.name}:y:0", *ends])
    hot.attr["T"].CopyFrom(kind)
    hot.attr["TI"].CopyFrom(node.attr["Tidx"])
    hot.attr["axis"].i = -1
    axis = constant("axis", np.array([1], np.int32))
    new = type(node)(name=node.name, op="Max" if node.attr["binary_output"].b else "Sum")
    new.input.extend([f"{hot.name}:output:0", axis])
    new.attr["T"].CopyFrom(kind)
    new.attr["Tidx"].type = tf.int32.as_datatype_enum
    new.attr["keep_dims"].b = False
    new.attr["_output_shapes"].CopyFrom(node.attr["_output_shapes"])
    node.CopyFrom(new)
    return True  # their outputs have one name


def _keep_roots_finite(function: Any) -> bool:
    """Lets a root that is bounded above, as `ops.normalize` has it, be that of one where it would be that of zero.

    LiteRT's kernel makes NaN of the infinite root before the bound could catch it; what it is to scale is zero.
    """
    by_name = {node.name: node for node in function.node_def}
    roots = {}
    for node in [n for n in function.node_def if n.op == "Minimum"]:
        makers = [by_name.get(_maker(name)) for name in node.input]
        root = next((m for m in makers if m is not None and m.op == "Rsqrt"), None)
        if root is not None and _scales_what_is_squared(function, node, root, by_name=by_name):
            roots[root.name] = root
    for name, root in roots.items():
        kind, given = root.attr["T"].type, root.input[0]
        zero = function.node_def.add(name=f"{name}/zero", op="Const")
        zero.attr["dtype"].type = kind
        zero.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(0.0, tf.as_dtype(kind)))
        is_zero = function.node_def.add(name=f"{name}/is_zero", op="Equal", input=[given, f"{zero.name}:output:0"])
        is_zero.attr["T"].type = kind
        is_zero.attr["incompatible_shape_error"].b = True
        one = function.node_def.add(name=f"{name}/one", op="Cast", input=[f"{is_zero.name}:z:0"])
        one.attr["SrcT"].type, one.attr["DstT"].type = tf.bool.as_datatype_enum, kind
        moved = function.node_def.add(name=f"{name}/moved", op="AddV2", input=[given, f"{one.name}:y:0"])
        moved.attr["T"].type = kind
        root.input[0] = f"{moved.name}:z:0"
    return bool(roots)


def _scales_what_is_squared(function: Any, bounded: Any, root: Any, *, by_name: Mapping[str, Any]) -> bool:
    """Whether a root of a sum of squares scales nothing but what was squared, which is zero where the sum is."""
    total = by_name.get(_maker(root.input[0]))
    square = by_name.get(_maker(total.input[0])) if total is not None and total.op == "Sum" else None
    if square is None or square.op not in ("Square", "Mul") or len(set(square.input)) != 1:
        return False
    readers = [n for n in function.node_def if any(_maker(name) == bounded.name for name in n.input)]
    own = f"{bounded.name}:"
    is_returned = any(name.startswith(own) for name in function.ret.values())
    return not is_returned and all(n.op == "Mul" and square.input[0] in n.input for n in readers)


def _maker(name: str) -> str:
    """Name of the node that makes a tensor."""
    return name.partition(":")[0].removeprefix("^")


def _rename(function: Any, old: str, new: str) -> None:
    """Outputs have names of their own by kind of operator."""
    for node in function.node_def:
        for place, name in enumerate(node.input):
            if name.startswith(old):
                node.input[place] = new + name.removeprefix(old)
    for key, name in function.ret.items():
        if name.startswith(old):
            function.ret[key] = new + name.removeprefix(old)
