"""What is known about layer types: which weights they multiply by, and what their outputs need.

Types are told by class name along the inheritance, so that one table serves both Keras generations and
subclasses such as those of KerasHub.
"""

import math
from typing import Any, Literal

from tfopt.numerics.grids import Layout

Role = Literal[
    "product", "table", "norm", "same", "computes", "attention", "softmax", "recurrent", "cell", "stays_float",
    "unknown",
]  # fmt: skip

_KERNELS: dict[str, dict[str, Layout]] = {
    "Dense": {"kernel": Layout((0,))},
    "Conv1D": {"kernel": Layout((0, 1), False)},
    "Conv2D": {"kernel": Layout((0, 1, 2), False)},
    "Conv1DTranspose": {"kernel": Layout((0, 2), False)},
    "Conv2DTranspose": {"kernel": Layout((0, 1, 3), False)},
    "DepthwiseConv1D": {"kernel": Layout((0,), False), "depthwise_kernel": Layout((0,), False)},
    "DepthwiseConv2D": {"kernel": Layout((0, 1), False), "depthwise_kernel": Layout((0, 1), False)},
    "SeparableConv1D": {"depthwise_kernel": Layout((0,), False), "pointwise_kernel": Layout((0, 1), False)},
    "SeparableConv2D": {"depthwise_kernel": Layout((0, 1), False), "pointwise_kernel": Layout((0, 1, 2), False)},
}  # fmt: skip
# Each step of time multiplies by them.
_CELLS = {
    name: {"kernel": Layout((0,)), "recurrent_kernel": Layout((0,))}
    for name in ("LSTMCell", "GRUCell", "SimpleRNNCell")
}
_TABLES = {"Embedding": {"embeddings": Layout((1,))}}
ATTENTION = {"MultiHeadAttention", "GroupedQueryAttention"}
_NORMS = {"LayerNormalization", "BatchNormalization", "GroupNormalization", "RMSNormalization"}
# Outputs hold values of the input, on the input's grid.
_SAME = {
    "InputLayer", "Reshape", "Flatten", "Permute", "RepeatVector", "Identity", "Dropout", "SpatialDropout1D",
    "SpatialDropout2D", "GaussianNoise", "GaussianDropout", "AlphaDropout", "ActivityRegularization", "Masking",
    "MaxPooling1D", "MaxPooling2D", "GlobalMaxPooling1D", "GlobalMaxPooling2D", "ZeroPadding1D", "ZeroPadding2D",
    "Cropping1D", "Cropping2D", "UpSampling1D", "SlicingOpLambda", "GetItem", "Transpose", "ExpandDims", "Squeeze",
    "SwapAxes", "Moveaxis", "StopGradient",
}  # fmt: skip
_COMPUTES = {
    "Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "Concatenate", "Dot", "Activation", "ReLU",
    "LeakyReLU", "ELU", "PReLU", "Rescaling", "UpSampling2D", "AveragePooling1D", "AveragePooling2D",
    "GlobalAveragePooling1D", "GlobalAveragePooling2D", "TFOpLambda", "Normalization", "Resizing",
}  # fmt: skip
_SAME_FUNCTIONS = {
    "reshape", "transpose", "getitem", "expand_dims", "squeeze", "identity", "stop_gradient", "strided_slice",
    "slice", "split", "unstack", "gather", "broadcast_to",
}  # fmt: skip
_STAYS_FLOAT = {
    "PositionEmbedding": "positions are added, not multiplied by",
    "Conv3D": "no runtime here has an integer 3D convolution",
}  # fmt: skip


def class_names(layer: Any) -> list[str]:
    """Names of the layer's class and those it derives from."""
    return [base.__name__ for base in type(layer).__mro__]


def role(layer: Any) -> Role:
    """What kind of layer or operation this is."""
    names = class_names(layer)
    for name in names:
        if name in _STAYS_FLOAT:
            return "stays_float"
        if name == "EinsumDense" or name in _KERNELS:
            return "product"
        if name in _CELLS:
            return "cell"
        if name == "RNN":
            return "recurrent"
        if name in _TABLES:
            return "table"
        if name in _NORMS:
            return "norm"
        if name == "Softmax":
            return "softmax"
        if name in ATTENTION:
            return "attention"
        if name == "TFOpLambda":
            return "same" if _function_name(layer) in _SAME_FUNCTIONS else "computes"
        if name in _SAME:
            return "same"
        if name in _COMPUTES:
            return "computes"
    is_operation = "Operation" in names and "Layer" not in names  # a node of a functional Keras 3 model
    return "computes" if is_operation else "unknown"


def _function_name(node: Any) -> str:
    return str(getattr(node, "symbol", "") or getattr(node.function, "__name__", "")).rpartition(".")[2]


def why_float(layer: Any) -> str | None:
    """Why a known layer type stays in float, or None."""
    return next((_STAYS_FLOAT[name] for name in class_names(layer) if name in _STAYS_FLOAT), None)


def layouts(layer: Any) -> dict[str, Layout]:
    """Names of the weights that a known layer multiplies by or looks up in, with their axes."""
    for name in class_names(layer):
        if name == "EinsumDense":
            return {"kernel": _einsum_layout(layer)}
        found = _KERNELS.get(name) or _TABLES.get(name) or _CELLS.get(name)
        if found:
            return found
    return {}


def einsum_input_axes(layer: Any) -> tuple[int, ...]:
    """Axes of an EinsumDense layer's input that are summed over, counted from the end."""
    equation = layer.equation.replace(" ", "")
    operands, _, _ = equation.partition("->")
    values, kernel = (part.replace("...", "") for part in operands.split(","))
    summed = [label for label in kernel if label in values and label not in equation.partition("->")[2]]
    return tuple(values.index(label) - len(values) for label in summed)


def _einsum_layout(layer: Any) -> Layout:
    operands, _, result = layer.equation.replace(" ", "").partition("->")
    kernel = operands.split(",")[1]
    inputs = tuple(axis for axis, label in enumerate(kernel) if label not in result)
    neighbours = inputs == tuple(range(inputs[0], inputs[0] + len(inputs))) if inputs else False
    return Layout(inputs, neighbours)


def input_width(layer: Any, shape: tuple[int, ...], layout: Layout) -> int:
    """How many inputs each output sums over."""
    return math.prod(shape[axis] for axis in layout.inputs)


def linear_or_relu(layer: Any) -> bool:
    """Whether nothing, or only a ReLU that runtimes fuse, follows the product inside the layer."""
    activation = getattr(layer, "activation", None)
    return activation is None or getattr(activation, "__name__", "") in ("linear", "relu", "relu6")


def is_relu(node: Any) -> bool:
    """Whether a layer or operation is a ReLU that runtimes fuse into what comes before."""
    names = class_names(node)
    if "ReLU" in names or "Relu" in names or "Relu6" in names:
        return not getattr(node, "negative_slope", 0)
    if "Activation" in names:
        return getattr(node.activation, "__name__", "") in ("relu", "relu6")
    return "TFOpLambda" in names and _function_name(node) in ("relu", "relu6")


def is_add(node: Any) -> bool:
    """Whether a layer or operation adds two tensors."""
    names = class_names(node)
    return "Add" in names or ("TFOpLambda" in names and _function_name(node) in ("add", "add_v2"))
