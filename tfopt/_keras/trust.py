"""Refuses a Keras file that names more than code of Keras itself that computes.

A file names what builds it. tf_keras imports whatever module a configuration gives and calls whatever TensorFlow
function a `TFOpLambda` gives while it builds the graph; a vocabulary may be the path of any file.
"""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tfopt._keras import keras_api
from tfopt._keras.trusted_names import (
    KERAS_FUNCTIONS,
    MODULES_OF_FUNCTIONS,
    NAMES_WITHOUT_MODULE,
    TRUSTED_CLASSES,
    TRUSTED_FUNCTIONS,
)
from tfopt.errors import ModelFileError

# Attributes of ragged and sparse tensors, which tf_keras turns into layers as well.
_ATTRIBUTES = frozenset({
    "bounding_shape", "dense_shape", "dtype", "flat_values", "indices", "nested_row_splits", "nrows", "row_lengths",
    "row_limits", "row_splits", "row_starts", "shape", "to_sparse", "to_tensor", "value_rowids", "values",
    "with_flat_values", "with_values",
})  # fmt: skip
_TENSOR_CLASSES = frozenset({"RaggedTensor", "sparse.SparseTensor", "SparseTensor"})
_TYPES = frozenset({"TensorSpec", "RaggedTensorSpec", "SparseTensorSpec"})
# How both generations write values that are no objects.
_VALUES = frozenset({
    "TensorShape", "__bytes__", "__complex__", "__ellipsis__", "__keras_tensor__", "__numpy__", "__slice__",
    "__tensor__", "__tuple__",
})  # fmt: skip
_PACKAGES = frozenset({"keras", "tf_keras", "keras_hub"})
# Settings that layers and tokenizers take for the path of a file if they are a text.
_PATHS = frozenset({
    "file", "filename", "filepath", "merges", "path", "proto", "vocab_file", "vocabulary", "vocabulary_file",
})  # fmt: skip


def untrusted(config: Any, generation: str) -> Iterator[str]:
    """What a model's configuration holds that would run code or read other files while the model is built.

    Args:
        config: of any format; from JSON of bounded depth.
        generation: "tf_keras" or "keras", which will build it: each has custom objects of its own.
    """
    for node in _nodes(config):
        reason = _reason_to_refuse(node, generation)
        if reason is not None:
            yield reason


def refuse_code(config: Any, path: Path, *, generation: str) -> None:
    """Refuses a configuration that names code which would run while the model is built.

    Args:
        config: a model's configuration, of any format.
        path: the file it comes from, for the message.
        generation: that will build it.

    Raises:
        ModelFileError: a class, function or path that is not on the lists; it is named.
    """
    reason = next(untrusted(config, generation), None)
    if reason is not None:
        raise ModelFileError(
            f"{path} holds {reason}, which may run code or read files while loading: rebuild the model without it, "
            "import the module that defines a class of your own (imports=[...], or --import on the command line), "
            "load it yourself and pass the model object, or give trust=True where you trust whoever made it"
        )


def _reason_to_refuse(node: dict[str, Any], generation: str) -> str | None:
    for name in _PATHS & node.keys():
        if isinstance(node[name], str) and node[name]:
            return f"the path of another file, {name}={node[name]!r}"
    if "class_name" not in node:
        return None
    kind, settings = node["class_name"], node.get("config")
    config = settings if isinstance(settings, dict) else {}
    if kind in ("Lambda", "__lambda__"):
        return f"a Lambda layer ({config.get('name') or 'unnamed'})"
    if kind in ("TFOpLambda", "SlicingOpLambda"):
        function = str(config.get("function"))
        if function.removeprefix("compat.v1.") not in TRUSTED_FUNCTIONS:
            return f"a layer that calls tf.{function}"
        return None if _takes_tensors(node) else f"a layer that calls tf.{function} on constants alone"
    if kind == "TensorFlowOpLayer":
        return f"a layer of a raw TensorFlow operation ({config.get('name') or 'unnamed'})"
    if kind == "ClassMethod":
        name = f"{config.get('cls_symbol')}.{config.get('method_name')}"
        trusted = config.get("cls_symbol") in _TENSOR_CLASSES and ".from_" in name
        return None if trusted else f"a layer that calls tf.{name}"
    if kind in ("InstanceMethod", "InstanceProperty"):
        attribute = config.get("attr_name")
        return None if attribute in _ATTRIBUTES else f"a layer that takes the attribute {attribute!r}"
    if kind == "__typespec__":
        known = node.get("spec_name") in _TYPES and str(node.get("module")).startswith("tensorflow.python.")
        return None if known else f"the type {node.get('spec_name')} of the module {node.get('module')}"
    return None if kind in _VALUES else _untrusted_object(node, generation)


def _untrusted_object(node: dict[str, Any], generation: str) -> str | None:
    module, kind = node.get("module"), node["class_name"]
    name = node.get("config") if kind == "function" else kind
    # Files of the first formats give no module, and the registered name as that of the class.
    looked_up = node.get("registered_name") if isinstance(module, str) and kind != "function" else name
    if _is_registered(looked_up, module, generation):
        return None
    if not isinstance(module, str):
        return None if name in NAMES_WITHOUT_MODULE or name in KERAS_FUNCTIONS else f"an object of class {kind!r}"
    place = "keras" + module.removeprefix("tf_keras") if module.startswith("tf_keras") else module
    if kind == "function":
        known = place in MODULES_OF_FUNCTIONS and name in KERAS_FUNCTIONS
        return None if known else f"the function {name!r} of the module {module}"
    if (place, name) in TRUSTED_CLASSES:
        is_operation = place.startswith("keras.src.ops.") and "inbound_nodes" in node
        return None if not is_operation or _takes_tensors(node) else f"an operation {kind} on constants alone"
    return None if _is_loaded_class(module, str(kind)) else f"{kind} of the module {module}"


def _takes_tensors(node: dict[str, Any]) -> bool:
    """Whether every call of an operation layer reads an output of another layer: else it runs while it is built."""
    calls = node.get("inbound_nodes")
    return isinstance(calls, list) and all(_names_a_tensor(call) for call in calls)


def _names_a_tensor(value: Any) -> bool:
    if isinstance(value, dict):
        return value.get("class_name") == "__keras_tensor__" or any(_names_a_tensor(v) for v in value.values())
    if not isinstance(value, list):
        return False
    is_name = len(value) >= 3 and isinstance(value[0], str) and isinstance(value[1], int) and value[1] >= 0
    return (is_name and isinstance(value[2], int)) or any(_names_a_tensor(item) for item in value)


def _is_registered(name: Any, module: Any, generation: str) -> bool:
    """Whether the running program, or KerasHub, has registered what is named, for this generation."""
    if str(module).startswith("keras_hub.") and importlib.util.find_spec("keras_hub"):
        importlib.import_module("keras_hub")
    return isinstance(name, str) and name in keras_api.keras_module(generation).saving.get_custom_objects()


def _is_loaded_class(module: str, name: str) -> bool:
    """Whether it is a Keras class of a module of the running program, which it has imported itself."""
    if module.partition(".")[0] in _PACKAGES or module not in sys.modules:
        return False
    found = vars(sys.modules[module]).get(name)
    return isinstance(found, type) and any(c.__module__.partition(".")[0] in _PACKAGES for c in found.__mro__)


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    elif not isinstance(value, list):
        return
    for item in value.values() if isinstance(value, dict) else value:
        yield from _nodes(item)
