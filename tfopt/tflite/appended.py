"""Weights that become constants of a converted graph after the fact, rounded and written one at a time.

They lie behind the tree of objects, which says with 64 bits where: a file may be larger than the 2 GB of a tree.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from tfopt.numerics.fake_quant import best_clip, scale_and_zero, to_integers
from tfopt.numerics.grids import Layout, WeightSpec
from tfopt.tflite import flatbuffer as fb
from tfopt.tflite.grids import packed

_ROWS = Layout((1,))  # of a matrix of (outputs, inputs)
_ALIGNMENT = 64
_CHUNK = 1 << 19  # weights that are rounded at a time
_SOMEWHERE = 1 << 40  # a place that is not known yet, which takes as many bytes as one that is


@dataclasses.dataclass
class Appended:
    """A matrix of a graph, of (outputs, inputs), and where it will lie.

    Attributes:
        path: its name.
        shape: (outputs, inputs).
        spec: its grid.
        buffer: number of its buffer.
        scales: number of the buffer of its scales, for blocks.
        parameters: what its tensors say of their grid.
    """

    path: str
    shape: tuple[int, int]
    spec: WeightSpec
    buffer: int = -1
    scales: int | None = None
    parameters: Any = None

    @property
    def size(self) -> int:
        """Bytes of the integers."""
        count = self.shape[0] * self.shape[1]
        return count if self.spec.bits == 8 else -(-count // 2)

    @property
    def blocks(self) -> int:
        """Scales of each output."""
        return self.shape[1] // self.spec.granularity if isinstance(self.spec.granularity, int) else 1


def declare(model: Any, item: Appended, tensors: Sequence[tuple[Any, Any]]) -> None:
    """Makes tensors of graphs, given with their graphs, the constant of a matrix that is written later."""
    item.buffer = _outside(model, item.size)
    rows, blocks = item.shape[0], item.blocks
    new = schema.QuantizationParametersT()
    if isinstance(item.spec.granularity, int):
        item.scales = _outside(model, 2 * rows * blocks)
    else:
        new.scale, new.zeroPoint = np.ones(rows, np.float32), np.zeros(rows, np.int64)
        new.quantizedDimension = 0
    item.parameters = fb.Shared(new)
    for graph, tensor in tensors:
        tensor.type = fb.INT8 if item.spec.bits == 8 else fb.INT4
        tensor.buffer, tensor.quantization = item.buffer, item.parameters
        if item.scales is not None:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.detailsType = schema.QuantizationDetails.BlockwiseQuantization
            details = tensor.quantization.details = schema.BlockwiseQuantizationT()
            details.scales = fb.add_tensor(
                graph, f"{item.path}/scales", [rows, blocks], dtype=fb.FLOAT16, buffer=item.scales
            )
            details.zeroPoints, details.blockSize = -1, item.spec.granularity
            tensor.quantization.quantizedDimension = 0


def append_weights(model: Any, path: Path, items: Sequence[Appended], read: Callable[[str], np.ndarray]) -> None:
    """Writes the file.

    Args:
        model: the tree of objects, in which every item is declared.
        path: the file.
        items: the matrices.
        read: path of a matrix -> its values as (outputs, inputs); called once for each, in order.
    """
    front = len(fb.pack(model))
    at = _aligned(front)
    for number, size in [(i.buffer, i.size) for i in items] + [
        (i.scales, 2 * i.shape[0] * i.blocks) for i in items if i.scales is not None
    ]:
        model.buffers[number].offset, model.buffers[number].size = at, size
        at = _aligned(at + size)
    with path.open("w+b") as file:
        file.truncate(at)
        for item in items:
            _append(model, file, item, value=read(item.path))
        content = fb.pack(model)
        assert len(content) == front, "the tree of objects has grown over the weights"
        file.seek(0)
        file.write(content)


def _append(model: Any, file: BinaryIO, item: Appended, value: np.ndarray) -> None:
    """Rounds and writes a matrix, some rows at a time."""
    step = max(
        2, _CHUNK // item.shape[1] // 2 * 2
    )  # an even number, so that every row of 4 bits begins with a byte
    scales = np.empty((item.shape[0], item.blocks), np.float32)
    file.seek(model.buffers[item.buffer].offset)
    for start in range(0, item.shape[0], step):
        w = tf.constant(np.ascontiguousarray(value[start : start + step], np.float32))
        clip: Any = best_clip(w, _ROWS, item.spec) if item.spec.bits < 8 else 1.0
        scale, zero = scale_and_zero(w, _ROWS, item.spec, clip=clip)
        integers = to_integers(w, _ROWS, item.spec, scale=scale, zero=zero).numpy().astype(np.int8)
        scales[start : start + step] = np.reshape(scale, (len(integers), -1))
        file.write(packed(integers, 8 if item.spec.bits == 8 else 4).tobytes())
    if item.scales is None:
        item.parameters.scale = scales[:, 0]
    else:
        file.seek(model.buffers[item.scales].offset)
        file.write(scales.astype(np.float16).tobytes())


def _outside(model: Any, size: int) -> int:
    new = schema.BufferT()
    new.offset, new.size = _SOMEWHERE, max(size, 2)
    model.buffers.append(new)
    return len(model.buffers) - 1


def _aligned(place: int) -> int:
    return -(-place // _ALIGNMENT) * _ALIGNMENT
