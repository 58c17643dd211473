"""Looks into a `.tflite` file: its constant tensors, their types, and the operators that read them."""

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tfopt._base.foreign import regular
from tfopt.errors import ModelFileError

# Element types of the format: name, bits, NumPy type in which the bytes are stored.
_TYPES = {
    0: ("float32", 32, np.float32), 1: ("float16", 16, np.float16), 2: ("int32", 32, np.int32),
    3: ("uint8", 8, np.uint8), 4: ("int64", 64, np.int64), 6: ("bool", 8, np.bool_),
    7: ("int16", 16, np.int16), 9: ("int8", 8, np.int8), 10: ("float64", 64, np.float64),
    17: ("int4", 4, np.uint8), 19: ("int2", 2, np.uint8),
}  # fmt: skip
_MAPPED = 1 << 28  # bytes of files that are not read whole
LOOKUPS = frozenset({"GATHER", "EMBEDDING_LOOKUP"})
# Operators that multiply by a weight.
PRODUCTS = frozenset(
    {"FULLY_CONNECTED", "BATCH_MATMUL", "CONV_2D", "DEPTHWISE_CONV_2D", "CONV_3D", "TRANSPOSE_CONV"}
)


@dataclasses.dataclass(frozen=True)
class Constant:
    """A constant tensor.

    Attributes:
        name: its name in the file.
        dtype: "float32", "int8", "int4", "int2" and so on.
        bits: bits of one element.
        shape: its shape.
        readers: names of the operators that read it, in any signature, directly or widened.
        stored: the bytes as an array, two elements of int4 in each, four of int2.
        scale: scales of an integer tensor, (1,), (channels,), or (channels, blocks); None for other types.
        zero: zero points, like `scale`.
        axis: the axis of the channels.
    """

    name: str
    dtype: str
    bits: int
    shape: tuple[int, ...]
    readers: frozenset[str]
    stored: np.ndarray = dataclasses.field(repr=False)
    scale: np.ndarray | None = dataclasses.field(default=None, repr=False)
    zero: np.ndarray | None = dataclasses.field(default=None, repr=False)
    axis: int = 0

    @functools.cached_property
    def data(self) -> np.ndarray:
        """The elements as an array of `dtype`; int4 and int2 are unpacked to int8."""
        found = self.stored
        if self.dtype in ("int4", "int2"):  # several per byte, from the low end
            mask, half = (1 << self.bits) - 1, 1 << (self.bits - 1)
            parts = np.stack([found >> shift & mask for shift in range(0, 8, self.bits)], axis=1)
            found = (((parts.reshape(-1) ^ half).astype(np.int8)) - half)[: math.prod(self.shape)]
        return found.reshape(self.shape) if found.size == math.prod(self.shape) else found

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def values(self) -> np.ndarray:
        """The float values of an integer tensor; the data of any other."""
        if self.scale is None or self.zero is None:
            return self.data
        if self.scale.ndim == 2:  # blocks along the last axis
            width = self.shape[-1] // self.scale.shape[1]
            return self.data.astype(np.float32) * np.repeat(self.scale, width, 1)
        shape = [1] * len(self.shape)
        shape[self.axis] = -1 if len(self.scale) > 1 else 1
        return (self.data.astype(np.float32) - self.zero.reshape(shape)) * self.scale.reshape(shape)

    @property
    def is_lookup(self) -> bool:
        """Whether rows are looked up in it."""
        return bool(self.readers & LOOKUPS)

    @property
    def is_kernel(self) -> bool:
        """Whether something is multiplied by it."""
        return bool(self.readers & PRODUCTS) and not self.is_lookup

    @property
    def is_matrix(self) -> bool:
        """Whether it is a weight matrix, table or kernel rather than a bias, shape or index."""
        return len(self.shape) >= 2 and self.dtype not in ("int32", "int64", "bool")


@dataclasses.dataclass(frozen=True)
class TFLiteFile:
    """What a file holds.

    Attributes:
        constants: every constant tensor once, however many signatures share it.
        operators: how often each operator occurs in the first signature's graph.
        dequantized_tables: names of lookup tables that are widened as a whole before the lookup.
        variables: names of tensors and resources whose values survive a call.
    """

    constants: tuple[Constant, ...]
    operators: dict[str, int]
    dequantized_tables: tuple[str, ...]
    variables: tuple[str, ...]


def flex_operators(path: str | Path) -> tuple[str, ...]:
    """Operators of TensorFlow's in a file, which need its Flex delegate."""
    from ai_edge_litert import schema_py_generated as schema

    codes = schema.ModelT.InitFromPackedBuf(Path(path).read_bytes(), 0).operatorCodes
    names = (code.customCode.decode() for code in codes if code.customCode)
    return tuple(sorted(name.removeprefix("Flex") for name in names if name.startswith("Flex")))


def read_tflite(path: str | Path) -> TFLiteFile:
    """Reads a file.

    Raises:
        MissingFileError: no such file.
        ModelFileError: it is not a TFLite file, or damaged.
    """
    path = regular(path, "TFLite file", ModelFileError)
    from ai_edge_litert import schema_py_generated as schema

    with path.open("rb") as file:
        if file.read(8)[4:] != b"TFL3":
            raise ModelFileError(f"{path} is not a TFLite file")
    # A file may be larger than what memory should hold of it.
    large = path.stat().st_size > _MAPPED
    data: Any = np.memmap(path, np.uint8, "r") if large else path.read_bytes()
    try:
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data))
        gather_buffers(model, data)
        return _describe(model)
    except Exception as error:  # a damaged buffer fails anywhere, with whatever its bytes lead to
        raise ModelFileError(f"{path} is damaged: {error}") from error


def read_metadata(path: str | Path) -> dict[str, bytes]:
    """What a file stores beside its graphs, by name; tensors are not read.

    Raises:
        MissingFileError: no such file.
        ModelFileError: it is not a TFLite file, or damaged.
    """
    path = regular(path, "TFLite file", ModelFileError)
    from ai_edge_litert import schema_py_generated as schema

    with path.open("rb") as file:
        if file.read(8)[4:] != b"TFL3":
            raise ModelFileError(f"{path} is not a TFLite file")
    data = np.memmap(path, np.uint8, "r")
    try:
        model = schema.Model.GetRootAs(data)
        found = {}
        for entry in (model.Metadata(i) for i in range(model.MetadataLength())):
            buffer = model.Buffers(entry.Buffer())
            found[entry.Name().decode()] = bytes(buffer.DataAsNumpy()) if buffer.DataLength() else b""
    except Exception as error:  # a damaged buffer fails anywhere, with whatever its bytes lead to
        raise ModelFileError(f"{path} is damaged: {error}") from error
    return found


def constant_places(path: str | Path) -> list[tuple[int, int, int]]:
    """Where constant tensors lie in a file: first byte, byte behind the last, bits of an element; in order.

    Raises:
        MissingFileError: no such file.
        ModelFileError: it is not a TFLite file, or damaged.
    """
    path = regular(path, "TFLite file", ModelFileError)
    from ai_edge_litert import schema_py_generated as schema

    data = np.memmap(path, np.uint8, "r")
    found: dict[int, tuple[int, int, int]] = {}
    try:
        model = schema.Model.GetRootAs(data)
        for graph in (model.Subgraphs(i) for i in range(model.SubgraphsLength())):
            for tensor in (graph.Tensors(i) for i in range(graph.TensorsLength())):
                buffer = model.Buffers(tensor.Buffer())
                _, bits, _ = _TYPES.get(tensor.Type(), ("", 8, np.uint8))
                start, size = buffer.Offset(), buffer.Size()
                if buffer.DataLength():
                    start, size = buffer.DataAsNumpy().ctypes.data - data.ctypes.data, buffer.DataLength()
                if size and 0 <= start <= start + size <= len(data):
                    found[tensor.Buffer()] = (int(start), int(start + size), min(bits, 32))
    except Exception as error:  # a damaged buffer fails anywhere, with whatever its bytes lead to
        raise ModelFileError(f"{path} is damaged: {error}") from error
    return sorted(found.values())


def gather_buffers(model: Any, content: Any) -> None:
    """Reads the buffers that a file keeps behind the tree of objects, as litert-quantizer writes them."""
    for buffer in model.buffers:
        if buffer.data is None and buffer.offset > 1:
            buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0


@functools.cache
def operator_names() -> dict[int, str]:
    """Code of a builtin operator -> its name."""
    from ai_edge_litert import schema_py_generated as schema

    return {code: name for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")}


def _describe(model: Any) -> TFLiteFile:
    names = operator_names()
    codes = [names.get(max(c.builtinCode, c.deprecatedBuiltinCode), "CUSTOM") for c in model.operatorCodes]
    readers: dict[int, set[str]] = {}
    first: dict[int, Any] = {}
    graphs: dict[int, Any] = {}
    widened: set[str] = set()
    for graph in model.subgraphs:
        made_by = {int(t): op for op in graph.operators for t in op.outputs}
        for op in graph.operators:
            name = codes[op.opcodeIndex]
            for index in (int(i) for i in op.inputs if i >= 0):
                tensor, maker = graph.tensors[index], made_by.get(index)
                if maker is not None and codes[maker.opcodeIndex] == "DEQUANTIZE":
                    tensor = graph.tensors[int(maker.inputs[0])]  # what is read is the narrow constant
                    if name in LOOKUPS and _has_data(model, tensor):
                        widened.add(_text(tensor.name))
                if _has_data(model, tensor):
                    readers.setdefault(tensor.buffer, set()).add(name)
                    first.setdefault(tensor.buffer, tensor)
                    graphs.setdefault(tensor.buffer, graph)
    constants = tuple(
        _constant(
            tensor, model.buffers[buffer].data, readers[buffer], scales=_scales(model, graphs[buffer], tensor)
        )
        for buffer, tensor in sorted(first.items())
    )
    operators = Counter(codes[op.opcodeIndex] for op in model.subgraphs[0].operators)
    return TFLiteFile(
        constants, dict(operators), tuple(sorted(widened)), variables=tuple(sorted(_variables(model, codes)))
    )


def _variables(model: Any, codes: list[str]) -> Iterator[str]:
    for graph in model.subgraphs:
        yield from (_text(tensor.name) for tensor in graph.tensors if tensor.isVariable)
        for op in graph.operators:
            if codes[op.opcodeIndex] == "VAR_HANDLE":
                yield _text(graph.tensors[int(op.outputs[0])].name)


def _has_data(model: Any, tensor: Any) -> bool:
    data = model.buffers[tensor.buffer].data
    return data is not None and len(data) > 0


def _text(name: Any) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)


def _scales(model: Any, graph: Any, tensor: Any) -> tuple[Any, Any, int]:
    """Scales, zero points and channel axis of an integer tensor."""
    parameters = tensor.quantization
    if parameters is None:
        return None, None, 0
    if parameters.details is not None and getattr(parameters.details, "blockSize", None):
        stored = graph.tensors[parameters.details.scales]
        half = np.frombuffer(bytes(model.buffers[stored.buffer].data), np.float16).reshape(list(stored.shape))
        return half.astype(np.float32), np.zeros(half.shape, np.int64), 0
    if parameters.scale is None or not len(parameters.scale):
        return None, None, 0
    return (
        np.asarray(parameters.scale, np.float32), np.asarray(parameters.zeroPoint, np.int64),
        int(parameters.quantizedDimension),
    )  # fmt: skip


def _constant(tensor: Any, data: np.ndarray, readers: set[str], scales: tuple[Any, Any, int]) -> Constant:
    shape = () if tensor.shape is None else tuple(int(d) for d in tensor.shape)
    dtype, bits, stored = _TYPES.get(tensor.type, (f"type_{tensor.type}", 8, np.uint8))
    values: np.ndarray = np.frombuffer(data, stored)
    return Constant(_text(tensor.name), dtype, bits, shape, frozenset(readers), values, *scales)
