"""Bytes that the tensors of a graph take at most, if its operations run in the order in which they were made."""

from collections.abc import Callable, Iterable
from typing import Any

# Operations that give the very buffer they take.
_ALIASES = {
    "Identity", "IdentityN", "Reshape", "Squeeze", "ExpandDims", "StopGradient", "PreventGradient", "EnsureShape",
    "ReadVariableOp", "CheckNumerics",
}  # fmt: skip
# Operations that write over an input which nobody else needs, if it has the size of their output.
_IN_PLACE = {
    "Add", "AddV2", "AddN", "Sub", "Mul", "RealDiv", "Neg", "Exp", "Log", "Tanh", "Erf", "Sigmoid", "Relu",
    "Square", "Sqrt", "Rsqrt", "Maximum", "Minimum", "BiasAdd", "Softmax", "Cast", "SelectV2", "TanhGrad",
    "RsqrtGrad", "SqrtGrad", "ReluGrad", "Pow", "SquaredDifference", "Selu", "Elu", "Softplus", "SoftplusGrad",
}  # fmt: skip
_FREE = {"Placeholder", "Const", "VarHandleOp", "NoOp"}  # held elsewhere


class _Buffers:
    """Bytes that are held while operations run one after the other."""

    def __init__(self) -> None:
        self.held = self.most = 0
        self.sizes: dict[Any, int] = {}  # bytes of a buffer that is held, by the tensor it was made for
        self.of: dict[Any, Any] = {}  # tensor -> buffer

    def make(self, name: Any, size: int) -> None:
        self.of[name] = name
        self.sizes[name] = size
        self.held += size
        self.most = max(self.most, self.held)

    def release(self, buffer: Any) -> None:
        self.held -= self.sizes.pop(buffer, 0)


def peak_bytes(graph: Any) -> int:
    """Bytes of tensors that are alive at once, at most; variables are not counted, nor what is given to the graph.

    Args:
        graph: of a concrete function, with functions that it calls; sizes that it does not know count as 1.
    """
    operations = _needed(graph)
    outputs = {tensor.ref() for tensor in graph.outputs}
    left: dict[Any, int] = {}
    for op in operations:
        for tensor in op.inputs:
            left[tensor.ref()] = left.get(tensor.ref(), 0) + 1
    buffers = _Buffers()
    waits: dict[Any, int] = {}  # buffer -> readers to come, of all tensors in it

    def readers(tensor: Any) -> int:
        return left.get(tensor.ref(), 0) + (tensor.ref() in outputs)

    for op in operations:
        inside = max((peak_bytes(g) for g in _called(op)), default=0)
        buffers.most = max(buffers.most, buffers.held + inside)
        for number, tensor in enumerate(op.outputs):
            taken = _taken_over(op, number, buffers, waits=waits)
            if taken is None:
                buffers.make(tensor.ref(), 0 if op.type in _FREE else _size(tensor))
                waits[tensor.ref()] = readers(tensor)
            else:
                buffers.of[tensor.ref()] = taken
                waits[taken] += readers(tensor)
        for tensor in op.inputs:
            buffer = buffers.of.get(tensor.ref())
            if buffer is not None:
                waits[buffer] -= 1
        ends = {buffers.of.get(tensor.ref()) for tensor in [*op.inputs, *op.outputs]} - {None}
        for buffer in ends:
            if waits[buffer] <= 0:
                buffers.release(buffer)
    return buffers.most


def _taken_over(op: Any, number: int, buffers: _Buffers, waits: dict[Any, int]) -> Any | None:
    """The buffer of an input that an output goes on in, or None."""
    if op.type in _ALIASES and number < len(op.inputs):
        return buffers.of.get(op.inputs[number].ref())
    if op.type not in _IN_PLACE:
        return None
    size = _size(op.outputs[number])
    reads = [buffers.of.get(tensor.ref()) for tensor in op.inputs]
    for buffer in reads:
        last = buffer is not None and waits[buffer] == reads.count(buffer)
        if last and buffers.sizes.get(buffer) == size and size:
            return buffer
    return None


def _size(tensor: Any) -> int:
    if tensor.shape.rank is None or tensor.dtype.size == 0 or tensor.dtype.name in ("resource", "variant"):
        return 0
    size: int = tensor.dtype.size
    for dimension in tensor.shape:
        size *= 1 if dimension is None else dimension
    return size


def _needed(graph: Any) -> list[Any]:
    """The operations that run, in the order in which they were made."""
    waiting = [tensor.op for tensor in graph.outputs] + list(graph.control_outputs)
    seen = {op.name for op in waiting}
    while waiting:
        op = waiting.pop()
        for other in [*(tensor.op for tensor in op.inputs), *op.control_inputs]:
            if other.name not in seen:
                seen.add(other.name)
                waiting.append(other)
    return [op for op in graph.get_operations() if op.name in seen]


def _called(op: Any) -> Iterable[Any]:
    """Graphs of the functions that an operation calls, one of them at a time."""
    names = [value.name for value in map(_attribute(op), ("f", "body", "then_branch", "else_branch")) if value]
    find: Callable[[str], Any] = op.graph._get_function
    return [found.graph for found in map(find, names) if found is not None]


def _attribute(op: Any) -> Callable[[str], Any]:
    def of(name: str) -> Any:
        return op.get_attr(name) if name in op.node_def.attr and op.node_def.attr[name].HasField("func") else None

    return of
