"""GGUF files: what they say of themselves, and their tensors.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The header is read here, since every number
in it must be compared with the bytes that are left before anything is made of it; the package `gguf` knows the
quantized types and widens them.
"""

import functools
import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np

from tfopt._base.foreign import regular
from tfopt.errors import InputError, ModelFileError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MOST_ENTRIES, _MOST_DIMENSIONS, _MOST_ELEMENTS = 1 << 16, 4, 1 << 24
# Kinds of metadata by their numbers; 8 is a text and 9 an array.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY, _FLOAT32 = 8, 9, 6


class GgufFile:
    """An open GGUF file; tensors are read when they are asked for. A context manager.

    Attributes:
        path: of the file.
        metadata: name -> number, text, truth, or a list of such.
        shapes: name of a tensor -> its shape, outputs first.

    Args:
        path: the file.

    Raises:
        MissingFileError: no such file.
        ModelFileError: it is something else, damaged, or holds a type that cannot be widened.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = regular(path, "model file", ModelFileError)
        if not self.path.stat().st_size:
            raise ModelFileError(f"{self.path} is empty")
        with self.path.open("rb") as file:
            self._content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            self.metadata, self._places = _header(self._content)
        except (InputError, struct.error, OverflowError, UnicodeDecodeError) as error:
            self.close()
            raise ModelFileError(f"{self.path} is no GGUF file that can be read: {error}") from error
        self.shapes = {name: shape for name, (shape, *_) in self._places.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        """A tensor as float32."""
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        shape, kind, start, size = self._places[name]
        stored = np.frombuffer(self._content[start : start + size], np.uint8)
        if kind == GGMLQuantizationType.F32:
            return stored.view(np.float32).reshape(shape)
        if kind == GGMLQuantizationType.F16:
            return stored.view(np.float16).reshape(shape).astype(np.float32)
        rows = stored.reshape(*shape[:-1], -1)
        return np.asarray(dequantize(rows, GGMLQuantizationType(kind)), np.float32).reshape(shape)

    def close(self) -> None:
        self._content.close()

    def __enter__(self) -> "GgufFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# Shape, number of the type, first byte, bytes.
_Place = tuple[tuple[int, ...], int, int, int]


def _header(content: mmap.mmap) -> tuple[dict[str, Any], dict[str, _Place]]:
    at = _Cursor(content)
    if content[:4] != _MAGIC:
        raise InputError("it does not begin with 'GGUF'")
    at.place = 4
    version = at.number("I")
    if version not in _VERSIONS:
        raise InputError(f"it has version {version}, known are {', '.join(map(str, _VERSIONS))} (little-endian)")
    tensors, entries = at.count("tensors", _MOST_ENTRIES), at.count("entries", _MOST_ENTRIES)
    metadata: dict[str, Any] = {}
    for _ in range(entries):
        name = at.text()
        if name in metadata:
            raise InputError(f"entry {name!r} is there twice")
        metadata[name] = at.value(at.number("I"))
    described = dict(_described(at) for _ in range(tensors))
    if len(described) != tensors:
        raise InputError("a tensor is there twice")
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise InputError(f"general.alignment must be a power of two, got {alignment!r}")
    start = -(-at.place // alignment) * alignment
    places = {name: (shape, kind, start + offset, size) for name, (shape, kind, offset, size) in described.items()}
    _check_places(places, len(content))
    return metadata, places


def _check_places(places: dict[str, _Place], length: int) -> None:
    """Tensors lie in the file, each in bytes of its own."""
    end = 0
    for name, (_, _, start, size) in sorted(places.items(), key=lambda item: item[1][2]):
        if start < end:
            raise InputError(f"tensor {name!r} lies in another one")
        end = start + size
        if end > length:
            raise InputError(f"tensor {name!r} ends at byte {end:,}, the file has {length:,}: it is cut short")


def _described(at: "_Cursor") -> tuple[str, _Place]:
    """Name, shape, type, offset and bytes of a tensor."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    name = at.text()
    dimensions = at.number("I")
    if not 1 <= dimensions <= _MOST_DIMENSIONS:
        raise InputError(f"tensor {name!r} has {dimensions} dimensions, 1 to {_MOST_DIMENSIONS} are possible")
    shape = tuple(at.number("Q") for _ in range(dimensions))[::-1]
    number, offset = at.number("I"), at.number("Q")
    try:
        kind = GGMLQuantizationType(number)
    except ValueError as error:
        raise InputError(f"tensor {name!r} is of type {number}, which the package gguf does not know") from error
    if not _is_widened(kind):
        raise InputError(f"tensor {name!r} is of type {kind.name}, which cannot be widened")
    count, (block, width) = 1, GGML_QUANT_SIZES[kind]
    for side in shape:
        count *= side
    if not count or shape[-1] % block:
        raise InputError(f"tensor {name!r} of shape {shape} does not fit into blocks of {block}")
    return name, (shape, int(kind), offset, count // block * width)


@functools.cache
def _is_widened(kind: Any) -> bool:
    from gguf import GGML_QUANT_SIZES
    from gguf.quants import dequantize

    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:  # how the package says so; who asks refuses the tensor by name
        return False
    return True


class _Cursor:
    """Reads one thing after another; `struct` refuses what lies beyond the end."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content, self.place = content, 0

    def number(self, form: str) -> Any:
        (found,) = struct.unpack_from(f"<{form}", self._content, self.place)
        self.place += struct.calcsize(f"<{form}")
        return found

    def count(self, what: str, most: int) -> int:
        found = self.number("Q")
        if found > min(most, len(self._content) - self.place):
            raise InputError(f"it announces {found:,} {what}, more than it can hold")
        return int(found)

    def text(self) -> str:
        length = self.count("bytes of a text", len(self._content))
        self.place += length
        return self._content[self.place - length : self.place].decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self.text()
        if kind == _ARRAY:
            inner = self.number("I")
            count = self.count("elements", _MOST_ELEMENTS)
            if inner == _TEXT:
                return [self.text() for _ in range(count)]
            if inner not in _NUMBERS:
                raise InputError(f"it has an array of type {inner}; numbers and texts are known")
            found = struct.unpack_from(f"<{count}{_NUMBERS[inner]}", self._content, self.place)
            self.place += struct.calcsize(f"<{count}{_NUMBERS[inner]}")
            return list(found)
        if kind not in _NUMBERS:
            raise InputError(f"it has an entry of type {kind}, which is unknown")
        number = self.number(_NUMBERS[kind])
        # The shortest decimal: 1e-5, not 9.999999747378752e-06.
        return float(str(np.float32(number))) if kind == _FLOAT32 else number
