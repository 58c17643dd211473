"""Values as streams of bytes that an entropy coder packs well.

A general compressor spends at least one bit on a zero and does not see through two values in a byte. So the most
frequent value is taken out, by a bit mask or by the gaps between the others; what is left is split into bytes of
one kind; and few distinct values become numbers of a palette. Each stream is then packed by Zstandard
(https://www.rfc-editor.org/rfc/rfc8878), whose Huffman coding comes close to the entropy of such streams.
"""

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import zstandard

from tfopt.errors import DataError

PLAIN, PLANES, MASK, GAPS, PALETTE = range(5)
_TRIAL, _LEVEL = 3, 19
_STORED, _ZSTD = range(2)
_STREAM = struct.Struct("<BII")  # how, bytes before, bytes after
_VALUES = struct.Struct("<BBIQ")  # coding, bits, how many values, the most frequent one
_ESCAPE = 255  # of gaps: so many and no value behind them
_MOST = 1 << 23  # bytes of all streams of a part; a damaged length must not ask for more
_DTYPES: dict[int, Any] = {4: np.dtype("u1"), 8: np.dtype("u1"), 16: np.dtype("<u2"), 32: np.dtype("<u4")}
Streams = list[bytes]


def encode(content: bytes, bits: int) -> bytes:
    """Packs values.

    Args:
        content: little-endian values; two per byte, the low half first, for 4 bits.
        bits: of a value: 4, 8, 16 or 32; 0 for bytes of any kind.
    """
    candidates = list(_candidates(content, bits))
    trials = [sum(_trial(stream) for stream in streams) for _, streams in candidates]
    header, streams = candidates[int(np.argmin(trials))]
    return header + b"".join(_packed(stream, _LEVEL) for stream in streams)


def decode(coded: bytes) -> bytes:
    """The reverse of `encode`.

    Raises:
        DataError: what was packed is damaged.
    """
    try:
        return _read(memoryview(coded))
    except (struct.error, ValueError, IndexError, KeyError, OverflowError, zstandard.ZstdError) as error:
        raise DataError(f"packed values are damaged: {error}") from error


def _candidates(content: bytes, bits: int) -> Iterator[tuple[bytes, Streams]]:
    """Every way to write the values: a header and streams."""
    yield _VALUES.pack(PLAIN, bits, len(content), 0), [content]
    if not bits or not content or len(content) * 8 % bits:
        return
    values = values_of(content, bits)
    if bits > 8:
        yield _VALUES.pack(PLANES, bits, len(values), 0), _planes(values, bits)
        distinct, numbers = np.unique(values, return_inverse=True)
        if len(distinct) <= 256 and len(distinct) * 4 < len(values):
            inner = encode(numbers.astype(np.uint8).tobytes(), 8)
            yield _VALUES.pack(PALETTE, bits, len(values), 0), [distinct.tobytes(), inner]
    common, others = _common(values)
    rest = _planes(values[others], bits)
    yield _VALUES.pack(MASK, bits, len(values), common), [np.packbits(others).tobytes(), *rest]
    yield _VALUES.pack(GAPS, bits, len(values), common), [_gaps(others), *rest]


def values_of(content: bytes, bits: int) -> np.ndarray:
    """The values as an array of their own, 4 bits as bytes."""
    if bits == 4:
        both = np.frombuffer(content, np.uint8)
        return np.stack([both & 15, both >> 4], 1).reshape(-1)
    return np.frombuffer(content, _DTYPES[bits])


def _common(values: np.ndarray) -> tuple[int, np.ndarray]:
    """The most frequent value, and where the others are."""
    if values.dtype == np.uint8:
        common = int(np.bincount(values).argmax())
    else:
        distinct, counts = np.unique(values, return_counts=True)
        common = int(distinct[counts.argmax()])
    return common, values != common


def _planes(values: np.ndarray, bits: int) -> Streams:
    """First bytes of all values, second bytes and so on; values of 4 bits in pairs."""
    if bits == 4:
        even = np.append(values, np.uint8(0)) if len(values) % 2 else values
        return [(even[::2] | (even[1::2] << 4)).astype(np.uint8).tobytes()]
    return [np.ascontiguousarray(plane).tobytes() for plane in values.view(np.uint8).reshape(-1, bits // 8).T]


def _from_planes(streams: Streams, bits: int, count: int) -> np.ndarray:
    if bits == 4:
        return values_of(streams[0], 4)[:count]
    planes = [np.frombuffer(stream, np.uint8) for stream in streams]
    return np.ascontiguousarray(np.stack(planes, 1)).reshape(-1).view(_DTYPES[bits])


def _gaps(others: np.ndarray) -> bytes:
    """How many common values come before each other one, as bytes with an escape for more."""
    gaps = np.diff(np.flatnonzero(others), prepend=-1) - 1
    escapes = gaps // _ESCAPE
    found = np.full(int((escapes + 1).sum()), _ESCAPE, np.uint8)
    found[np.cumsum(escapes + 1) - 1] = gaps % _ESCAPE
    return found.tobytes()


def _from_gaps(stream: bytes) -> np.ndarray:
    """Where the other values are."""
    gaps = np.frombuffer(stream, np.uint8)
    ends = np.flatnonzero(gaps != _ESCAPE)
    return np.cumsum(gaps.astype(np.int64))[ends] + np.arange(len(ends))


def _trial(stream: bytes) -> int:
    return len(_packed(stream, _TRIAL))


def _packed(stream: bytes, level: int) -> bytes:
    coded = zstandard.ZstdCompressor(level=_TRIAL).compress(stream)
    if len(coded) > 0.98 * len(stream):  # mantissas and the like: no level packs them
        return _STREAM.pack(_STORED, len(stream), len(stream)) + stream
    if level > _TRIAL:
        coded = min(coded, zstandard.ZstdCompressor(level=level).compress(stream), key=len)
    return _STREAM.pack(_ZSTD, len(stream), len(coded)) + coded


def _streams(coded: memoryview) -> Streams:
    found, total = [], 0
    while len(coded):
        how, before, after = _STREAM.unpack_from(coded)
        body = bytes(coded[_STREAM.size : _STREAM.size + after])
        total += before
        if total > _MOST or len(body) != after or how not in (_STORED, _ZSTD):
            raise ValueError("a stream is cut short or of an unknown kind")
        if how == _ZSTD:
            if zstandard.frame_content_size(body) != before:
                raise ValueError("a stream's length differs from what was written")
            body = zstandard.ZstdDecompressor().decompress(body, max_output_size=before)
        if len(body) != before:
            raise ValueError(f"a stream has {len(body)} bytes, {before} were written")
        found.append(body)
        coded = coded[_STREAM.size + after :]
    return found


def _read(coded: memoryview, inside: bool = False) -> bytes:
    coding, bits, count, common = _VALUES.unpack_from(coded)
    streams = _streams(coded[_VALUES.size :])
    if coding == PLAIN:
        return streams[0]
    if count * bits > 8 * _MOST:
        raise ValueError(f"{count} values of {bits} bits are more than were ever packed together")
    if coding == PLANES:
        values = _from_planes(streams, bits, count)
    elif coding == PALETTE and not inside:
        numbers = np.frombuffer(_read(memoryview(streams[1]), inside=True), np.uint8)
        values = np.frombuffer(streams[0], _DTYPES[bits])[numbers]
    elif coding in (MASK, GAPS):
        values = np.full(count, common, _DTYPES[bits])
        if coding == MASK:
            where = np.flatnonzero(np.unpackbits(np.frombuffer(streams[0], np.uint8), count=count))
        else:
            where = _from_gaps(streams[0])
        values[where] = _from_planes(streams[1:], bits, len(where))
    else:
        raise ValueError(f"unknown coding {coding}")
    if len(values) != count:
        raise ValueError(f"{len(values)} values, {count} were written")
    return _planes(values, 4)[0] if bits == 4 else values.tobytes()
