"""How long each operator of a TFLite file takes, and whether LiteRT's accelerated kernels (XNNPACK) take it.

LiteRT's Python interface has no profiler. So every operator becomes a file of its own, with the same constants and
shapes, and is timed alone, in turn with an operator that does nothing, whose time is left out. What an operator
gains or loses among its neighbours is not seen.
"""

import copy
import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfopt._base.cores import usable_cores
from tfopt.tflite import flatbuffer as fb
from tfopt.tflite.file import operator_names

_WARM, _ROUNDS = 3, 15
_ACCELERATED = "DELEGATE"


@dataclasses.dataclass(frozen=True)
class OperatorTime:
    """Operators of one kind.

    Attributes:
        name: of the kind.
        count: how many there are.
        accelerated: of them, by XNNPACK.
        milliseconds: of all, each timed alone.
    """

    name: str
    count: int
    accelerated: int
    milliseconds: float


def operator_times(
    path: str | Path, inputs: Mapping[str, np.ndarray], threads: int | None = None
) -> list[OperatorTime]:
    """Times the operators of the signature for these inputs, the longest first.

    Args:
        path: a TFLite file that was loaded before without trouble.
        inputs: name -> array, for the lengths.
        threads: of the runtime; by default all cores.
    """
    model = fb.read(Path(path).read_bytes())
    graph = model.subgraphs[_subgraph(model, inputs)]
    rows = next(iter(inputs.values())).shape[0]
    idle = _interpreter(_nothing(model), threads)
    found: dict[str, list[tuple[float, bool]]] = {}
    shapes = {id(tensor): _fixed(tensor, rows) for tensor in graph.tensors}
    for operator in graph.operators:
        alone = _interpreter(_alone(model, graph, operator, shapes=shapes), threads)
        accelerated = any(op["op_name"] == _ACCELERATED for op in alone._get_ops_details())
        name = operator_names().get(fb.code(model, operator), "CUSTOM")
        found.setdefault(name, []).append((max(_beyond(alone, idle), 0.0), accelerated))
    times = [
        OperatorTime(
            name, count=len(some), accelerated=sum(taken for _, taken in some),
            milliseconds=1e3 * sum(seconds for seconds, _ in some),
        )
        for name, some in found.items()
    ]  # fmt: skip
    return sorted(times, key=lambda t: -t.milliseconds)


def _subgraph(model: Any, inputs: Mapping[str, np.ndarray]) -> int:
    """Of the signature with the shortest inputs that hold these."""
    lengths = {}
    for signature in model.signatureDefs:
        graph = model.subgraphs[signature.subgraphIndex]
        tensors = {t.name.decode(): graph.tensors[t.tensorIndex] for t in signature.inputs}
        shapes: dict[str, Any] = {n: () if tensors[n].shape is None else tensors[n].shape for n in inputs}
        if all(len(shapes[n]) < 2 or v.ndim < 2 or shapes[n][1] >= v.shape[1] for n, v in inputs.items()):
            lengths[signature.subgraphIndex] = sum(int(np.prod(shape)) for shape in shapes.values())
    return min(lengths, key=lambda index: lengths[index]) if lengths else 0


def _fixed(tensor: Any, rows: int) -> list[int]:
    shape = tensor.shape if tensor.shapeSignature is None else tensor.shapeSignature
    return [] if shape is None else [rows if int(size) < 0 else int(size) for size in shape]


def _alone(model: Any, graph: Any, operator: Any, shapes: Mapping[int, list[int]]) -> Any:
    """A model of one operator."""
    made = fb.schema.ModelT()
    made.version, made.buffers = model.version, [fb.schema.BufferT()]
    op = copy.copy(operator)
    made.operatorCodes, op.opcodeIndex = [model.operatorCodes[operator.opcodeIndex]], 0
    part = fb.schema.SubGraphT()
    part.tensors, part.operators, part.inputs = [], [op], []
    places: dict[int, int] = {}

    def place(index: int) -> int:
        if index < 0:
            return -1
        if index not in places:
            tensor = copy.copy(graph.tensors[index])
            tensor.shape, tensor.shapeSignature = shapes[id(graph.tensors[index])], None
            data = model.buffers[tensor.buffer]
            tensor.buffer = 0
            if data.data is not None and len(data.data):
                made.buffers.append(data)
                tensor.buffer = len(made.buffers) - 1
            part.tensors.append(tensor)
            places[index] = len(part.tensors) - 1
            details = tensor.quantization and tensor.quantization.details
            if details is not None and getattr(details, "scales", None) is not None:
                tensor.quantization = copy.copy(tensor.quantization)
                tensor.quantization.details = copy.copy(details)
                tensor.quantization.details.scales = place(details.scales)
        return places[index]

    op.inputs = [place(int(i)) for i in operator.inputs]
    part.inputs = [n for n in dict.fromkeys(op.inputs) if n >= 0 and not part.tensors[n].buffer]
    op.outputs = part.outputs = [place(int(i)) for i in operator.outputs]
    made.subgraphs = [part]
    return made


def _nothing(model: Any) -> Any:
    """A model that reshapes one number."""
    made = fb.schema.ModelT()
    made.version, made.buffers, made.operatorCodes = model.version, [fb.schema.BufferT()], []
    graph = fb.schema.SubGraphT()
    graph.tensors, graph.operators = [], []
    source, target = (fb.add_tensor(graph, name, [1], dtype=fb.FLOAT32) for name in ("in", "out"))
    made.subgraphs = [graph]
    graph.operators = [fb.reshape(made, graph, source, target=target, shape=[1])]
    graph.inputs, graph.outputs = [source], [target]
    return made


def _interpreter(model: Any, threads: int | None) -> Any:
    """Ready to be called, its inputs filled."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=fb.write(model), num_threads=threads or usable_cores())
    interpreter.allocate_tensors()
    for detail in interpreter.get_input_details():
        fill = np.zeros if np.issubdtype(detail["dtype"], np.integer) else np.ones
        interpreter.set_tensor(detail["index"], fill(detail["shape"], detail["dtype"]))
    return interpreter


def _beyond(interpreter: Any, idle: Any) -> float:
    """Median seconds that a call takes beyond one of `idle`, each pair in turn: a busy machine slows both."""
    taken = []
    for _ in range(_WARM + _ROUNDS):
        started = time.perf_counter()
        interpreter.invoke()
        between = time.perf_counter()
        idle.invoke()
        taken.append(2 * between - started - time.perf_counter())
    return float(np.median(taken[_WARM:]))
