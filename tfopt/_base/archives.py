"""Zip archives that nobody here wrote: sizes are compared before anything is unpacked."""

import errno
import shutil
import zipfile
from pathlib import Path
from typing import IO

from tfopt._base.limits import MAX_RATIO
from tfopt.errors import ModelFileError


def check_members(archive: zipfile.ZipFile, path: Path) -> None:
    """Checks how much larger members get when they are unpacked, each and together.

    Raises:
        ModelFileError: more than what real data can be packed by.
    """
    check_sizes(archive, path.stat().st_size, str(path))


def check_sizes(archive: zipfile.ZipFile, packed: int, where: str) -> None:
    """The same for an archive of so many bytes that lies anywhere; `where` names it."""
    for member in archive.infolist():
        if member.compress_size > packed or member.file_size > max(member.compress_size, 1) * MAX_RATIO:
            raise ModelFileError(
                f"{where} would unpack {member.filename} from {member.compress_size:,} to {member.file_size:,} "
                "bytes: it is damaged, or made to fill the disk"
            )
    total = sum(member.file_size for member in archive.infolist())
    if total > packed * MAX_RATIO:
        raise ModelFileError(f"{where} would unpack {packed:,} to {total:,} bytes: it is damaged")


def read_member(archive: zipfile.ZipFile, name: str, *, most: int, path: Path) -> bytes:
    """A member's content.

    Raises:
        ModelFileError: it is larger than `most` bytes.
        KeyError: there is no such member.
        zipfile.BadZipFile: it is damaged.
    """
    size = archive.getinfo(name).file_size
    if size > most:
        raise ModelFileError(f"{path} has {name} of {size:,} bytes, more than the {most:,} that are read")
    try:
        return archive.read(name)
    except OSError as error:
        if error.errno == errno.EINVAL:  # its place is before the file
            raise zipfile.BadZipFile(f"{name} lies outside of the archive") from error
        raise


def write_member(archive: zipfile.ZipFile, name: str, content: IO[bytes], size: int) -> None:
    """Copies a stream of so many bytes into an archive, a piece at a time and without the time of day."""
    entry = zipfile.ZipInfo(name)
    entry.file_size = size
    with archive.open(entry, "w") as target:
        shutil.copyfileobj(content, target, 1 << 20)
