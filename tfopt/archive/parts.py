"""Which bytes of a file are values, and of how many bits."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tfopt.archive.coding import encode
from tfopt.errors import ModelFileError
from tfopt.tflite.file import constant_places

_LEAST, _CHUNK = 1 << 10, 1 << 20  # bytes of values worth a part of their own; bytes of a part at most
_SAMPLE = 1 << 16

Part = tuple[int, int, int]  # first byte, byte behind the last, bits of a value or 0


def parts(path: Path) -> Iterator[Part]:
    """The whole file in order, in parts of at most a mebibyte.

    Constants of TFLite files are known. Other files may hold float32 values at any offset, as variables of
    SavedModels; where that packs better, they are taken for such.
    """
    at, size = 0, path.stat().st_size
    for start, stop, bits in _known(path, size):
        if start >= at and stop - start >= _LEAST:
            yield from _pieces(at, start, 0)
            yield from _pieces(start, stop, bits)
            at = stop
    yield from _pieces(at, size, 0)


def _known(path: Path, size: int) -> list[Part]:
    with path.open("rb") as file:
        if file.read(8)[4:] == b"TFL3":
            with contextlib.suppress(ModelFileError):  # packed all the same, as bytes of any kind
                return constant_places(path)
            return []
        if size < _SAMPLE:
            return []
        middle = (size - _SAMPLE) // 2 & ~3
        file.seek(middle)
        sample = file.read(_SAMPLE)
    whole = (len(sample) - 3) & ~3
    coded = [len(encode(sample[shift : shift + whole], 32)) for shift in range(4)]
    shift = coded.index(min(coded))
    if coded[shift] > 0.99 * len(encode(sample[:whole], 0)):
        return []
    return [(shift, shift + ((size - shift) & ~3), 32)]


def _pieces(start: int, stop: int, bits: int) -> Iterator[Part]:
    for at in range(start, stop, _CHUNK):
        yield at, min(at + _CHUNK, stop), bits
