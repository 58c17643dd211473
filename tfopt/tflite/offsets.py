"""Blocks of weights that lie where their values do: integers around an offset of each block.

LiteRT multiplies blocks that are symmetric around zero. The offset of a block, times the sum of what the block is
multiplied by, is added by a product of its own, which is as much narrower as a block is wide.
"""

import copy
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfopt.errors import VerificationError
from tfopt.numerics.fake_quant import OFFSET_LEVELS
from tfopt.quantization.record import Grid
from tfopt.tflite import flatbuffer as fb
from tfopt.tflite.file import Constant
from tfopt.tflite.matching import Matched

_NAME = "offsets"


def add_offsets(model: Any, matched: list[Matched]) -> None:
    """Adds the products of offsets behind every operator that multiplies by a weight which has some, in place.

    What several weights are multiplied by, as queries, keys and values are, is summed once.
    """
    narrow = {}
    for item in (item for item in matched if item.grid.spec.has_offsets):
        integers, step = _narrow(item.grid)
        narrow[item.found.buffer] = item, integers.shape, fb.add_buffer(model, integers), _scales(step)
    for graph in model.subgraphs:
        operators: list[Any] = []
        sums: dict[tuple[int, int], int] = {}
        for op in graph.operators:
            is_product = fb.code(model, op) == fb.Op.FULLY_CONNECTED
            known = narrow.get(graph.tensors[int(op.inputs[1])].buffer) if is_product else None
            if known is None:
                operators.append(op)
                continue
            item, shape, buffer, scales = known
            source, block = int(op.inputs[0]), int(item.grid.spec.granularity)
            if (source, block) not in sums:
                made, sums[source, block] = _summed(model, graph, source, width=item.found.shape[-1], block=block)
                operators += made
            offsets = fb.add_tensor(graph, f"{item.found.name}/{_NAME}", shape, fb.INT8, buffer)
            graph.tensors[offsets].quantization = scales
            operators += _added(model, graph, op, offsets=offsets, sums=sums[source, block])
        graph.operators = operators


def check_offsets(item: Matched, constants: list[Constant]) -> None:
    """Compares the offsets of a file with those of a grid.

    Raises:
        VerificationError: named "grids".
    """
    integers, step = _narrow(item.grid)
    for name in item.found.names:
        for stored in [c for c in constants if c.name.startswith(f"{name}/{_NAME}/")]:
            same = stored.scale is not None and np.allclose(stored.scale, step, rtol=1e-6)
            if same and np.array_equal(stored.data, integers):
                return
    raise VerificationError("grids", f"weight {item.found.name!r} has other offsets than its grid")


def _narrow(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Offsets as integers of 8 bits, (outputs, blocks), and the scale of each output."""
    offsets = -grid.scale * grid.zero
    reach = np.abs(offsets).max(1)
    step = np.where(reach > 0, reach / OFFSET_LEVELS, 1).astype(np.float32)
    return np.rint(offsets / step[:, None]).astype(np.int8), step


def _scales(step: np.ndarray) -> Any:
    new = schema.QuantizationParametersT()
    new.scale, new.zeroPoint, new.quantizedDimension = step, np.zeros(len(step), np.int64), 0
    return new


def _summed(model: Any, graph: Any, source: int, width: int, block: int) -> tuple[list[Any], int]:
    """Operators that sum blocks of what is multiplied, and the tensor of these sums."""
    shape = [int(size) for size in graph.tensors[source].shape]
    shape = shape if shape[-1] == width else [int(np.prod(shape)) // width, width]
    name = fb.name(graph.tensors[source])
    blocks = fb.add_tensor(graph, f"{name}/blocks", [*shape[:-1], width // block, block], fb.FLOAT32)
    target = fb.add_tensor(graph, f"{name}/sums", [*shape[:-1], width // block], fb.FLOAT32)
    axis = np.array([len(shape)], np.int32)
    axes = fb.add_tensor(graph, "axis", axis.shape, fb.INT32, fb.add_buffer(model, axis))
    split = fb.reshape(model, graph, source, target=blocks, shape=[-1, *shape[1:-1], width // block, block])
    total = fb.operator(model, fb.Op.SUM, 1, inputs=[blocks, axes], outputs=[target])
    total.builtinOptionsType, total.builtinOptions = schema.BuiltinOptions.ReducerOptions, schema.ReducerOptionsT()
    total.builtinOptions.keepDims = False
    return [split, total], target


def _added(model: Any, graph: Any, op: Any, offsets: int, sums: int) -> list[Any]:
    """A product, that of its offsets, and their sum in the place of what it gave."""
    result = int(op.outputs[0])
    tensor = graph.tensors[result]
    plain, part = (fb.add_tensor(graph, f"{fb.name(tensor)}/{part}", tensor.shape, fb.FLOAT32)
                   for part in ("plain", _NAME))  # fmt: skip
    beside = copy.deepcopy(op)
    beside.inputs, beside.outputs = [sums, offsets, -1], [part]
    joined = fb.operator(model, fb.Op.ADD, 1, inputs=[plain, part], outputs=[result])
    joined.builtinOptionsType, joined.builtinOptions = schema.BuiltinOptions.AddOptions, schema.AddOptionsT()
    joined.builtinOptions.fusedActivationFunction = op.builtinOptions.fusedActivationFunction
    for product in (op, beside):
        product.builtinOptions.fusedActivationFunction = schema.ActivationFunctionType.NONE
    op.outputs = [plain]
    return [op, beside, joined]
