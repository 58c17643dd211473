"""The `.tfopt` file.

    "TFOPT1\\r\\n"
    for each file:   record FILE: its path in UTF-8
                     records PART: packed values, see `coding`
    record END:      SHA-256 over paths and contents

A record is its kind, its length, its CRC-32 and its content: a reader needs one record at a time, can read from a
pipe, and notices damage where it is. What it writes is renamed into place after the last check.
"""

import dataclasses
import errno
import hashlib
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tfopt._base.files import existing, files_below, replacing
from tfopt._base.foreign import regular
from tfopt._base.limits import MAX_RATIO, MAX_UNPACKED_BYTES, SPARE_BYTES
from tfopt.archive.coding import decode, encode
from tfopt.archive.entropy import bound
from tfopt.archive.names import is_safe, same_file
from tfopt.archive.parts import parts
from tfopt.errors import DataError, InputError

SUFFIX = ".tfopt"
_MAGIC = b"TFOPT1\r\n"
_RECORD = struct.Struct("<BII")
_FILE, _PART, _END = b"FPE"
_NAMES_AT_FAULT = {errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}
_LONGEST = 1 << 24  # bytes of a record; a damaged length must not ask for more


@dataclasses.dataclass(frozen=True)
class Packed:
    """What packing came to.

    Attributes:
        path: the archive, or the artifact if none was written.
        files: how many it holds.
        bytes: of the artifact.
        packed_bytes: of the archive.
        entropy_bytes: what the archive's values need at least if each is coded by its frequency, with everything
            else as it is in the archive; see `entropy.bound`.
    """

    path: Path
    files: int
    bytes: int
    packed_bytes: int
    entropy_bytes: int


def pack(artifact: str | Path, out: str | Path | None = None) -> Packed:
    """Packs a file or a folder for download.

    Args:
        artifact: anything, best a `.tflite` file or a SavedModel.
        out: the archive to write, by default the artifact's name with ".tfopt" added; a file there is replaced. It
            appears whole or not at all.

    Raises:
        MissingFileError: no such artifact.
        InputError: an artifact without a file or with names that not every system can write, or an `out` that is
            the artifact, a folder, or in one with it.
    """
    source = existing(artifact, "artifact")
    target = Path(out) if out is not None else source.resolve().with_name(source.resolve().name + SUFFIX)
    if source.is_dir() and target.resolve().is_relative_to(source.resolve()):
        raise InputError(f"the archive {target} must not lie in the folder {source} that it packs")
    if target.is_dir() or target.resolve() == source.resolve():
        raise InputError(f"the archive {target} would replace what is there; name a file that is to be written")
    with replacing(target) as temporary, temporary.open("wb") as file:
        return dataclasses.replace(_write(source, file), path=target)


def sizes(artifact: str | Path) -> Packed:
    """What `pack` would come to; nothing is written."""
    return _write(existing(artifact, "artifact"), _Nowhere())


def unpack(archive: str | Path | BinaryIO, out: str | Path) -> Path:
    """Writes what an archive holds, bit for bit.

    Args:
        archive: a file, or anything to read bytes from, such as a download; it is read once, from front to back.
        out: the file or folder to write. It appears whole, after all checks, or not at all.

    Raises:
        MissingFileError: no such archive.
        DataError: it is damaged, cut short or no archive.
        InputError: `out` exists, or the archive is a folder.
    """
    target = Path(out)
    if target.exists():
        raise InputError(f"{target} is there already; choose another name")
    if isinstance(archive, str | Path):
        if Path(archive).is_dir():
            raise InputError(f"{archive} is a folder; name a {SUFFIX} file")
        with regular(archive, "archive").open("rb") as file:
            return _extract(file, target, str(archive))
    return _extract(archive, target, "the archive")


def check(archive: str | Path) -> int:
    """Reads an archive to its end, unpacking everything, and returns how many files it holds.

    Raises:
        MissingFileError: no such archive.
        DataError: it is damaged, cut short or no archive.
    """
    path = regular(archive, "archive")
    with path.open("rb") as file:
        return sum(content is None for _, content in _contents(file, str(path)))


class _Nowhere:
    def write(self, content: bytes) -> None:
        pass


def _write(source: Path, file: "BinaryIO | _Nowhere") -> Packed:
    found = files_below(source)
    if not found:
        raise InputError(f"{source} holds no file to pack")
    digest, seen = hashlib.sha256(), set[str]()
    size, packed, least = 0, len(_MAGIC), float(len(_MAGIC))
    file.write(_MAGIC)
    for path in found:
        name = path.relative_to(source).as_posix() if source.is_dir() else ""
        if not is_safe(name):
            raise InputError(f"{path} has a name that not every system can write; rename it before packing")
        if source.is_dir() and not path.resolve().is_relative_to(source.resolve()):
            raise InputError(f"{path} is a link out of the folder; put the file itself there before packing")
        if same_file(name) in seen:
            raise InputError(f"{path} has the name of another file but for its case; rename it before packing")
        seen.add(same_file(name))
        digest.update(_named(name))
        taken = _record(file, _FILE, name.encode())
        packed, least = packed + taken, least + taken
        with path.open("rb") as content:
            for start, stop, bits in parts(path):
                values = content.read(stop - start)
                digest.update(values)
                taken = _record(file, _PART, encode(values, bits))
                size, packed = size + len(values), packed + taken
                least += min(taken, bound(values, bits)) if bits else taken
    if _is_too_much(size, packed):
        raise InputError(f"{source} packs to so little ({packed:,} of {size:,} bytes) that nobody would unpack it")
    taken = _record(file, _END, digest.digest())
    return Packed(source, len(found), size, packed_bytes=packed + taken, entropy_bytes=round(least + taken))


def _record(file: "BinaryIO | _Nowhere", kind: int, content: bytes) -> int:
    file.write(_RECORD.pack(kind, len(content), zlib.crc32(content)))
    file.write(content)
    return _RECORD.size + len(content)


def _named(name: str) -> bytes:
    return name.encode() + b"\0"


def _extract(file: BinaryIO, target: Path, source: str) -> Path:
    with replacing(target) as temporary:
        opened: BinaryIO | None = None
        try:
            for name, content in _contents(file, source):
                if content is not None:
                    assert opened is not None
                    opened.write(content)
                    continue
                if opened is not None:
                    opened.close()
                opened = _opened(temporary / name, name, source)
        finally:
            if opened is not None:
                opened.close()
    return target


def _opened(path: Path, name: str, source: str) -> BinaryIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("xb")
    except OSError as error:
        if error.errno not in _NAMES_AT_FAULT:
            raise
        raise DataError(f"{source} holds {name!r}, which cannot be written: {error.strerror}") from error


def _contents(file: BinaryIO, source: str) -> Iterator[tuple[str, bytes | None]]:
    """Names of files, each followed by its contents; complete when it ends."""
    if _exactly(file, len(_MAGIC), source) != _MAGIC:
        raise DataError(f"{source} is no tfopt archive")
    digest, name, seen = hashlib.sha256(), None, set[str]()
    taken = written = 0
    while True:
        kind, length, crc = _RECORD.unpack(_exactly(file, _RECORD.size, source))
        if length > _LONGEST or kind not in (_FILE, _PART, _END):
            raise DataError(f"{source} is damaged: it holds a record of kind {kind} with {length} bytes")
        content = _exactly(file, length, source)
        if zlib.crc32(content) != crc:
            raise DataError(f"{source} is damaged: a checksum differs in {name or 'its head'}")
        if kind == _END:
            break
        if kind == _FILE:
            name = _safe(content, source)
            if same_file(name) in seen or (seen and "" in (name, *seen)):
                raise DataError(f"{source} is damaged: it holds {name!r} twice, or but for its case")
            seen.add(same_file(name))
            digest.update(_named(name))
            yield name, None
        elif name is None:
            raise DataError(f"{source} is damaged: contents come before a name")
        else:
            values = decode(content)
            taken, written = taken + length, written + len(values)
            if _is_too_much(written, taken):
                raise DataError(
                    f"{source} would unpack {taken:,} bytes to {written:,} and more: nothing was unpacked"
                )
            digest.update(values)
            yield name, values
    if file.read(1):
        raise DataError(f"{source} is damaged: more bytes follow its end")
    if name is None or digest.digest() != content:
        raise DataError(f"{source} is damaged: what it holds differs from what was packed")


def _is_too_much(size: int, packed: int) -> bool:
    """Whether so many bytes out of so few were made to fill a disk."""
    return size > MAX_UNPACKED_BYTES or size > max(SPARE_BYTES, packed * MAX_RATIO)


def _exactly(file: BinaryIO, count: int, source: str) -> bytes:
    """So many bytes, however few come at once."""
    found = bytearray()
    while len(found) < count:
        more = file.read(count - len(found))
        if not more:
            raise DataError(f"{source} is no whole tfopt archive: it ends early")
        found += more
    return bytes(found)


def _safe(content: bytes, source: str) -> str:
    """A path below the folder that is written, or "" for a single file."""
    name = content.decode("utf-8", "replace")
    if not is_safe(name):
        raise DataError(f"{source} holds the path {name!r}, which leads elsewhere; nothing was unpacked")
    return name
