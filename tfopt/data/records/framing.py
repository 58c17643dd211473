"""The frames of TFRecord files: lengths and checksums, read without trusting either.

Format: https://www.tensorflow.org/tutorials/load_data/tfrecord (length, masked CRC-32C of the length, data, masked
CRC-32C of the data). A compressed shard is one stream of GZIP, of any number of members, around the same frames.
"""

import contextlib
import gzip
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c

from tfopt._base.limits import MAX_RATIO, MAX_RECORD_BYTES
from tfopt.errors import DataError

HEADER = struct.Struct("<QI")
FOOTER = struct.Struct("<I")
_CRC_MASK = 0xA282EAD8
_GZIP = 31  # of zlib: a header and a footer as gzip writes them
_PIECE = 1 << 12


def masked(crc: Any) -> Any:
    """A CRC-32C as TFRecord stores it."""
    return ((crc >> 15 | crc << 17) + _CRC_MASK) & 0xFFFFFFFF


def scan_records(path: str | Path, compression: str = "") -> Iterator[bytes]:
    """Yields the records of a file and checks every length and checksum.

    Raises:
        DataError: the file is cut or damaged; it is named with the offset.
    """
    for handle, offset, length in _frames(Path(path), compression):
        record, footer = handle.read(length), handle.read(FOOTER.size)
        if len(footer) < FOOTER.size:
            raise DataError(f"{path} is cut within the record at byte {offset}: it says it has {length} bytes")
        if masked(google_crc32c.value(record)) != FOOTER.unpack(footer)[0]:
            raise DataError(f"{path} is damaged at byte {offset} (checksum of a record)")
        yield record


def check_framing(path: str | Path, compression: str = "") -> None:
    """Checks the length of every record against its checksum and the size of the file; records are not read.

    TensorFlow allocates whatever a length with a right checksum says, and ends the process.

    Raises:
        DataError: the file is cut or damaged; it is named with the offset.
    """
    for handle, offset, length in _frames(Path(path), compression):
        end = offset + HEADER.size + length + FOOTER.size
        if handle.seek(end) != end:  # of a compressed file, whose size nobody knows before
            raise DataError(f"{path} is cut within the record at byte {offset}: it says it has {length} bytes")


def _frames(path: Path, compression: str) -> Iterator[tuple[Any, int, int]]:
    """The file behind the header of each record, where the record begins, and its length."""
    with _opened(path, compression) as (handle, size):
        offset = 0
        while (length := _record_size(handle, path, offset, size=size)) is not None:
            yield handle, offset, length
            offset += HEADER.size + length + FOOTER.size


def readable_records(path: str | Path, compression: str = "") -> Iterator[bytes]:
    """Yields the records of a damaged file whose checksums are right, and goes on behind those whose are not.

    Where a length is damaged, what follows is searched for the next record. Of a compressed file, everything up to
    the damage is read, and nothing behind it.
    """
    content = _readable_bytes(Path(path), compression)
    offset = 0
    while offset + HEADER.size + FOOTER.size <= len(content):
        length, crc = HEADER.unpack_from(content, offset)
        end = offset + HEADER.size + length
        if masked(google_crc32c.value(content[offset : offset + 8])) != crc or end + FOOTER.size > len(content):
            offset += 1
            continue
        record = content[offset + HEADER.size : end]
        if masked(google_crc32c.value(record)) == FOOTER.unpack_from(content, end)[0]:
            yield record
        offset = end + FOOTER.size


def _readable_bytes(path: Path, compression: str) -> bytes:
    content = path.read_bytes()
    if not compression:
        return content
    found, most = bytearray(), MAX_RATIO * len(content)
    stream = zlib.decompressobj(wbits=_GZIP)
    with contextlib.suppress(zlib.error):  # what comes behind the damage cannot be unpacked
        for start in range(0, len(content), _PIECE):
            piece = content[start : start + _PIECE]
            while piece and len(found) < most:
                found += stream.decompress(piece, most - len(found))
                piece = stream.unconsumed_tail
                if stream.eof:
                    piece, stream = stream.unused_data, zlib.decompressobj(wbits=_GZIP)
    return bytes(found)


@contextlib.contextmanager
def _opened(path: Path, compression: str) -> Iterator[tuple[Any, int | None]]:
    """The content, and how many bytes it has where that is known."""
    if not compression:
        with path.open("rb") as handle:
            yield handle, path.stat().st_size
        return
    try:
        with gzip.open(path) as handle:
            yield handle, None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged: {error}") from error


def _record_size(handle: BinaryIO, path: Path, offset: int, size: int | None) -> int | None:
    """Reads and checks the header of the record at an offset; None at the end."""
    header = handle.read(HEADER.size)
    if not header and size in (None, offset):
        return None
    if len(header) < HEADER.size:
        raise DataError(f"{path} is cut within a record header at byte {offset}")
    length, length_crc = HEADER.unpack(header)
    if masked(google_crc32c.value(header[:8])) != length_crc:
        raise DataError(f"{path} is damaged at byte {offset} (checksum of a record length)")
    if size is not None and offset + HEADER.size + length + FOOTER.size > size:
        raise DataError(f"{path} is cut within the record at byte {offset}: it says it has {length} bytes")
    if length > MAX_RECORD_BYTES:
        raise DataError(f"{path} has a record of {length:,} bytes at byte {offset}; {MAX_RECORD_BYTES:,} are read")
    if size is None and offset + length > MAX_RATIO * path.stat().st_size:
        raise DataError(f"{path} would unpack to more than {MAX_RATIO} times its size: it is made to fill the disk")
    return int(length)
