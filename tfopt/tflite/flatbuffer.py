"""Reading and changing the objects of a TFLite file."""

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from tfopt.tflite.file import gather_buffers

Op = schema.BuiltinOperator
FLOAT32, INT32, INT64, INT8, INT4, INT2, FLOAT16, INT16 = (
    schema.TensorType.FLOAT32, schema.TensorType.INT32, schema.TensorType.INT64, schema.TensorType.INT8,
    schema.TensorType.INT4, schema.TensorType.INT2, schema.TensorType.FLOAT16, schema.TensorType.INT16,
)  # fmt: skip


def read(content: bytes) -> Any:
    """The file as a tree of Python objects."""
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    gather_buffers(model, content)
    return model


class Shared(schema.QuantizationParametersT):
    """Scales that several tensors refer to and that a file holds once."""

    def __init__(self, source: Any) -> None:
        self.__dict__.update(vars(source))
        self._packed: tuple[Any, int] | None = None

    def Pack(self, builder: Any) -> int:
        if self._packed is None or self._packed[0] is not builder:
            self._packed = (builder, super().Pack(builder))
        return self._packed[1]


def write(model: Any) -> bytes:
    """The bytes of the tree; a weight's scales, which each signature names again, are written once."""
    shared: dict[Any, Shared] = {}
    for tensor in (t for graph in model.subgraphs for t in graph.tensors):
        parameters = tensor.quantization
        if parameters is None or parameters.scale is None or len(parameters.scale) < 2:
            continue
        scale, zero = np.asarray(parameters.scale), np.asarray(parameters.zeroPoint)
        key = (scale.tobytes(), zero.tobytes(), parameters.quantizedDimension)
        tensor.quantization = shared.setdefault(key, Shared(parameters))
    return pack(model)


def pack(model: Any) -> bytes:
    """The bytes of the tree as it is."""
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def code(model: Any, op: Any) -> int:
    """Which builtin operator this is."""
    found = model.operatorCodes[op.opcodeIndex]
    return int(max(found.builtinCode, found.deprecatedBuiltinCode))


def opcode(model: Any, builtin: int, version: int) -> int:
    """Index of an operator code, added if the model lacks it; its version is raised to `version`."""
    for index, found in enumerate(model.operatorCodes):
        if max(found.builtinCode, found.deprecatedBuiltinCode) == builtin:
            found.version = max(found.version, version)
            return index
    new = schema.OperatorCodeT()
    new.builtinCode, new.deprecatedBuiltinCode, new.version = builtin, min(builtin, 127), version
    model.operatorCodes.append(new)
    return len(model.operatorCodes) - 1


def data(model: Any, tensor: Any) -> np.ndarray | None:
    """The bytes of a constant tensor, None for one that is computed."""
    found = model.buffers[tensor.buffer].data
    return None if found is None or len(found) == 0 else np.asarray(found, np.uint8)


def is_constant(model: Any, tensor: Any) -> bool:
    """Whether a tensor has a value in the file, in the tree or behind it."""
    return data(model, tensor) is not None or int(model.buffers[tensor.buffer].offset or 0) > 1


def floats(model: Any, tensor: Any) -> np.ndarray | None:
    """A constant float32 tensor's values, None for anything else."""
    found = data(model, tensor) if tensor.type == FLOAT32 else None
    return None if found is None else found.view(np.float32).reshape([int(d) for d in tensor.shape])


def name(tensor: Any) -> str:
    """The tensor's name as text."""
    return text(tensor.name)


def text(stored: Any) -> str:
    """A name of the file as text."""
    return stored.decode("utf-8", "replace") if isinstance(stored, bytes) else str(stored)


def add_tensor(graph: Any, title: str, shape: Any, dtype: int, buffer: int = 0) -> int:
    """Adds a tensor to a graph under a name that no other tensor of it has; returns its index."""
    new = schema.TensorT()
    new.name, new.shape, new.type, new.buffer = f"{title}/{len(graph.tensors)}".encode(), list(shape), dtype, buffer
    graph.tensors.append(new)
    return len(graph.tensors) - 1


def add_buffer(model: Any, values: np.ndarray) -> int:
    """Adds a buffer with the bytes of an array; returns its index."""
    new = schema.BufferT()
    new.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
    model.buffers.append(new)
    return len(model.buffers) - 1


def add_metadata(model: Any, title: str, content: bytes) -> None:
    """Stores bytes under a name in the file."""
    new = schema.MetadataT()
    new.name, new.buffer = title.encode(), add_buffer(model, np.frombuffer(content, np.uint8))
    model.metadata = [*(model.metadata or []), new]


def operator(model: Any, builtin: int, version: int, inputs: list[int], outputs: list[int]) -> Any:
    """A new operator without options."""
    new = schema.OperatorT()
    new.opcodeIndex, new.inputs, new.outputs = opcode(model, builtin, version), inputs, outputs
    return new


def reshape(model: Any, graph: Any, source: int, target: int, shape: list[int]) -> Any:
    """A new RESHAPE operator."""
    sizes = np.array(shape, np.int32)
    constant = add_tensor(graph, "shape", sizes.shape, dtype=INT32, buffer=add_buffer(model, sizes))
    new = operator(model, Op.RESHAPE, 1, inputs=[source, constant], outputs=[target])
    new.builtinOptionsType, new.builtinOptions = schema.BuiltinOptions.ReshapeOptions, schema.ReshapeOptionsT()
    new.builtinOptions.newShape = shape
    return new


def cast(model: Any, graph: Any, source: int, target: int) -> Any:
    """A new CAST operator between the types of two tensors."""
    new = operator(model, Op.CAST, 1, inputs=[source], outputs=[target])
    new.builtinOptionsType, new.builtinOptions = schema.BuiltinOptions.CastOptions, schema.CastOptionsT()
    new.builtinOptions.inDataType, new.builtinOptions.outDataType = (
        graph.tensors[source].type, graph.tensors[target].type,
    )  # fmt: skip
    return new


def drop_unused_tensors(model: Any) -> None:
    """Takes out tensors that no operator, input or output refers to; readers of all tensors trip over them."""
    for number, graph in enumerate(model.subgraphs):
        used = {int(i) for op in graph.operators for i in (*op.inputs, *op.outputs) if i >= 0}
        used |= {int(i) for i in (*graph.inputs, *graph.outputs)}
        kept = [i for i in range(len(graph.tensors)) if i in used]
        new = {-1: -1, **{old: index for index, old in enumerate(kept)}}
        graph.tensors = [graph.tensors[i] for i in kept]
        for op in graph.operators:
            op.inputs, op.outputs = [new[int(i)] for i in op.inputs], [new[int(i)] for i in op.outputs]
        graph.inputs, graph.outputs = [new[int(i)] for i in graph.inputs], [new[int(i)] for i in graph.outputs]
        for signature in model.signatureDefs or ():
            if signature.subgraphIndex == number:
                for tensor in (*signature.inputs, *signature.outputs):
                    tensor.tensorIndex = new[int(tensor.tensorIndex)]
