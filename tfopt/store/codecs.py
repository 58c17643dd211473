"""How a tensor is stored: as it is, or narrower. All but "int8" give back the same bits.

- dense: as it is.
- sparse: the values that are not zero, and a bit for each place.
- table: at most 256 different values, and a number of one byte for each place; of clustered and quantized weights.
- int8: whole numbers with one scale for each output (the last axis), half a step off at most.
- delta: the bytes that differ from those of another store, packed; of trainings that went on.
- same: nothing; the tensor is that of the other store.
"""

import math
from collections.abc import Mapping

import numpy as np
import xxhash
import zstandard

from tfopt._base.limits import MAX_RATIO
from tfopt.errors import DataError
from tfopt.store.index import Encoding, Tensor, dtype_of

_LEAST = 4096  # elements below which nothing is gained
_TABLE = 256
_SEEN = 1024  # of which more differ in most tensors
_LEVEL = 3
Parts = dict[str, np.ndarray]


def encode(
    value: np.ndarray, *, sparse: bool, narrow: bool, int8: bool, base: np.ndarray | None = None
) -> tuple[Encoding, Parts]:
    """The encoding of those allowed that takes least, and the arrays that are stored for it.

    Args:
        value: the tensor.
        sparse: allows "sparse".
        narrow: allows "table".
        int8: allows "int8", which rounds, for matrices of floats.
        base: the same tensor of another store; allows "same" and "delta".
    """
    if base is not None and base.shape == value.shape and base.dtype == value.dtype:
        difference = as_bytes(base) ^ as_bytes(value)
        if not difference.any():
            return "same", {}
        packed = _pack(difference, value.dtype.itemsize)
        if packed.size < 0.95 * value.nbytes:
            return "delta", {".delta": packed}
    found: list[tuple[Encoding, Parts]] = [("dense", {"": value})]
    if value.size >= _LEAST and value.dtype.kind in "fV":
        found += _narrower(value, sparse=sparse, narrow=narrow, int8=int8)
    return min(found, key=lambda one: sum(part.nbytes for part in one[1].values()))


def _narrower(value: np.ndarray, *, sparse: bool, narrow: bool, int8: bool) -> list[tuple[Encoding, Parts]]:
    found: list[tuple[Encoding, Parts]] = []
    bits = value.reshape(-1).view(f"u{value.dtype.itemsize}")
    # Of the bits, so that a negative zero stays one.
    if sparse and np.count_nonzero(bits) * value.itemsize + value.size / 8 < value.nbytes:
        there = bits != 0
        found.append(("sparse", {".values": value.reshape(-1)[there], ".places": np.packbits(there)}))
    if narrow and np.unique(bits[:_SEEN]).size <= _TABLE:
        table, numbers = np.unique(bits, return_inverse=True)
        if table.size <= _TABLE:
            found.append(("table", {".table": table.view(value.dtype), ".numbers": numbers.astype(np.uint8)}))
    if int8 and value.ndim > 1 and value.dtype == np.float32:
        scale = np.abs(value).reshape(-1, value.shape[-1]).max(0) / 127
        safe = np.where(scale > 0, scale, 1).astype(np.float32)
        found.append(("int8", {".int8": np.rint(value / safe).astype(np.int8), ".scale": safe}))
    return found


def decode(name: str, tensor: Tensor, parts: Mapping[str, np.ndarray], base: np.ndarray | None) -> np.ndarray:
    """The tensor out of the arrays that are stored for it; a dense one is the stored array itself.

    Raises:
        DataError: the arrays do not make such a tensor.
    """
    try:
        value = _decoded(tensor, parts, base)
        if value.dtype != dtype_of(tensor.dtype) or value.shape != tensor.shape:
            raise ValueError(f"it would be {value.dtype} of {value.shape}")
    except (KeyError, ValueError, IndexError, zstandard.ZstdError) as error:
        raise DataError(
            f"tensor {name!r} is damaged: its parts do not make {tensor.dtype} of {tensor.shape} ({error})"
        ) from error
    return value


def _decoded(tensor: Tensor, parts: Mapping[str, np.ndarray], base: np.ndarray | None) -> np.ndarray:
    dtype, count = dtype_of(tensor.dtype), math.prod(tensor.shape)
    if tensor.encoding == "dense":
        return parts[""]
    if tensor.encoding == "sparse":
        if parts[".places"].size != -(-count // 8):
            raise ValueError(f"{parts['.places'].size:,} bytes of places for {count:,} values")
        places = np.unpackbits(parts[".places"], count=count).astype(bool)
        if parts[".values"].shape != (int(places.sum()),) or parts[".values"].dtype != dtype:
            raise ValueError("other values than places")
        found = np.zeros(count, dtype)
        found[places] = parts[".values"]
        return found.reshape(tensor.shape)
    if tensor.encoding == "table":
        if parts[".table"].ndim != 1 or parts[".numbers"].dtype != np.uint8 or parts[".numbers"].size != count:
            raise ValueError("other numbers than values")
        return parts[".table"][parts[".numbers"]].reshape(tensor.shape)
    if tensor.encoding == "int8":
        if parts[".int8"].shape != tensor.shape or parts[".scale"].shape != tensor.shape[-1:]:
            raise ValueError("other scales than outputs")
        return (parts[".int8"] * parts[".scale"]).astype(dtype).reshape(tensor.shape)
    if base is None:
        raise ValueError("it needs the store that it is a difference to")
    if base.nbytes != tensor.bytes or tensor.encoding == "same":
        return base
    difference = _unpack(parts[".delta"], tensor.bytes, dtype.itemsize)
    return (as_bytes(base) ^ difference).view(dtype).reshape(tensor.shape)


def checksum(value: np.ndarray) -> str:
    """XXH3 of the bytes of an array: as fast as memory is, which CRC-32 is not."""
    return xxhash.xxh3_64_hexdigest(as_bytes(value).data)


def as_bytes(value: np.ndarray) -> np.ndarray:
    """The bytes of an array, one after another."""
    return np.ascontiguousarray(value).reshape(-1).view(np.uint8)


def _pack(difference: np.ndarray, width: int) -> np.ndarray:
    """Packs bytes with those of equal weight beside each other: the high ones of a small step are mostly zero."""
    planes = np.ascontiguousarray(difference.reshape(-1, width).T)
    return np.frombuffer(zstandard.ZstdCompressor(_LEVEL).compress(planes.data), np.uint8)


def _unpack(packed: np.ndarray, size: int, width: int) -> np.ndarray:
    if size > max(packed.size, 64) * MAX_RATIO * 16:  # zstandard packs zeros further than deflate does
        raise ValueError(f"{packed.size:,} bytes would unpack to {size:,}")
    if zstandard.frame_content_size(packed.tobytes()) != size:
        raise ValueError(f"it would unpack to other than {size:,} bytes")
    planes = zstandard.ZstdDecompressor().decompress(packed.tobytes(), max_output_size=size)
    return np.ascontiguousarray(np.frombuffer(planes, np.uint8).reshape(width, -1).T).reshape(-1)
