"""Files that hold arrays by name: safetensors, mapped into memory, and HDF5.

https://huggingface.co/docs/safetensors: eight bytes with the size of a header in JSON, the header, the arrays. The
library of that format copies what it reads, and does not align what it writes; here arrays are views of the file,
which may become the memory of variables.
"""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfopt._base.foreign import parse_json
from tfopt._base.limits import MAX_TEXT_BYTES
from tfopt.errors import DataError
from tfopt.store.index import dtype_of

# Variables of TensorFlow begin at multiples of it, and copying from such a place is fastest.
_ALIGNMENT = 64
_MOST_AXES = 32
_CODES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64",
    "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool", "C64": "complex64",
}  # fmt: skip
_NAMES = {name: code for code, name in _CODES.items()}
_DTYPE = "dtype"
# What h5py answers damage with; SystemError is what becomes of an error within one of its visits.
_DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, SystemError)


def write_safetensors(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays one after another, aligned as far as that goes.

    Raises:
        DataError: a dtype that the format does not know.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "np"}}
    offset = 0
    # Those that end at a multiple of the alignment first, so that as many as possible begin at one.
    ordered = sorted(arrays, key=lambda n: (arrays[n].nbytes % _ALIGNMENT > 0, -arrays[n].dtype.itemsize, n))
    for name in ordered:
        array = arrays[name]
        if array.dtype.name not in _NAMES:
            raise DataError(f"safetensors cannot store {name!r} of dtype {array.dtype.name}; use format='hdf5'")
        header[name] = {
            "dtype": _NAMES[array.dtype.name], "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }  # fmt: skip
        offset += array.nbytes
    content = json.dumps(header).encode()
    content += b" " * (-(len(content) + 8) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(content)) + content)
        for name in ordered:
            file.write(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data)


class SafetensorsFile:
    """The arrays of a file; each is a view of the file until it is copied.

    Raises:
        DataError: the header does not fit the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\xff"))
            if length > min(MAX_TEXT_BYTES, size - 8):
                raise DataError(f"{path} is no safetensors file: its header would have {length:,} bytes")
            header = parse_json(file.read(length), f"the header of {path}")
        if not isinstance(header, dict):
            raise DataError(f"{path} is no safetensors file: its header is a {type(header).__name__}")
        header.pop("__metadata__", None)
        self._start = 8 + length
        self._places = {name: self._place(name, entry, size - self._start) for name, entry in header.items()}
        # Copied where it is written to: the file does not change.
        self._bytes = np.memmap(path, np.uint8, "c") if size else np.empty(0, np.uint8)

    def _place(self, name: str, entry: Any, room: int) -> tuple[np.dtype[Any], tuple[int, ...], int, int]:
        try:
            dtype = dtype_of(_CODES[entry["dtype"]])
            shape, (start, end) = tuple(entry["shape"]), entry["data_offsets"]
            numbers = [*shape, start, end]
            if not all(isinstance(number, int) and number >= 0 for number in numbers) or end > room:
                raise ValueError(f"{numbers} in {room} bytes")
            if len(shape) > _MOST_AXES or max(shape, default=0) > room:
                raise ValueError(f"the shape {shape}")
            if math.prod(shape) * dtype.itemsize != end - start:
                raise ValueError(f"{shape} of {dtype} in {end - start} bytes")
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{self._path} says wrong things of {name!r}: {error}") from error
        return dtype, shape, start, end

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __getitem__(self, name: str) -> np.ndarray:
        dtype, shape, start, end = self._places[name]
        found: np.ndarray = self._bytes[self._start + start : self._start + end].view(dtype).reshape(shape)
        return np.asarray(found)


def write_hdf5(path: Path, arrays: Mapping[str, np.ndarray], compression: str | None) -> None:
    """Writes arrays as datasets, in chunks where they are compressed ("gzip" or "lzf")."""
    import h5py

    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            native = array.dtype.kind in "biufc"
            stored = array if native else array.view(f"u{array.dtype.itemsize}")
            packed = compression if array.ndim and array.size else None
            file.create_dataset(
                _dataset(name), data=stored, compression=packed, shuffle=packed is not None,
                chunks=True if packed else None,
            ).attrs[_DTYPE] = np.bytes_(array.dtype.name)  # fmt: skip


class Hdf5File:
    """The arrays of an HDF5 file; each is read when it is asked for.

    Raises:
        DataError: it cannot be read, or is larger than what it holds.
    """

    def __init__(self, path: Path) -> None:
        import h5py

        from tfopt._keras.hdf5 import check_hdf5

        self._path = path
        try:
            check_hdf5(path, path.stat().st_size, path)
            self._file = h5py.File(path, "r")
        except _DAMAGE as error:
            raise DataError(f"{path} is no HDF5 file: {error}") from error

    def __contains__(self, name: str) -> bool:
        return _dataset(name) in self._file

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            dataset = self._file[_dataset(name)]
            found: np.ndarray = dataset[()]
            return np.asarray(found).view(dtype_of(_dtype_name(dataset)))
        except _DAMAGE as error:
            raise DataError(f"{self._path}: {name!r} cannot be read: {error}") from error


def _dtype_name(dataset: Any) -> str:
    """A name of fixed length: others lie in a heap, and HDF5 may search a damaged heap without end."""
    kind = dataset.attrs.get_id(_DTYPE).get_type()
    if kind.is_variable_str():
        raise ValueError("its dtype has no fixed length")
    return bytes(dataset.attrs[_DTYPE]).decode("ascii")


def _dataset(name: str) -> str:
    """A name without the slashes that would make groups of HDF5."""
    return name.replace("%", "%25").replace("/", "%2F")
