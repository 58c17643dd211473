"""Files that appear whole or not at all: temporary sibling, flush to disk, rename."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tfopt.errors import MissingFileError, NoRoomError

# How systems say that no more can be written: the disk, the quota or the longest file.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def existing(path: str | os.PathLike[str], what: str = "file") -> Path:
    """Returns `path` as a Path, or raises MissingFileError that says what was looked for."""
    found = Path(path)
    try:
        there = found.exists()
    except OSError as error:  # a name that is too long, a loop of links
        raise MissingFileError(f"{what} not found: {error.strerror}: {str(found)[:200]}") from error
    if not there:
        raise MissingFileError(f"{what} not found: {found}")
    return found


@contextlib.contextmanager
def replacing(target: str | os.PathLike[str], *, needs: int = 0) -> Iterator[Path]:
    """Yields a temporary path next to `target`; on success it is flushed and renamed over `target`.

    The caller creates a file or a folder at the yielded path. If the block raises, or nothing was
    created, `target` stays as it was and the temporary is removed. A folder cannot be renamed over
    another, so the old one steps aside first; should the process die between the two renames, the
    next call brings the old one back.

    Args:
        target: file or folder.
        needs: bytes that will be written at least, as far as that is known; compared with what is free first.

    Raises:
        NoRoomError: the disk is too full for it, or became so.
        MissingFileError: nothing was created.
    """
    target = Path(target)
    made = _make_folders(target.parent)
    aside = target.with_name(f".{target.name}.old")
    if aside.exists() and not target.exists():
        aside.rename(target)
    # The suffix is kept: several writers choose their format by it.
    temporary = target.with_name(f".{uuid.uuid4().hex[:8]}.tmp.{target.name}")
    try:
        _check_room(target, needs)
        yield temporary
        if not temporary.exists():
            raise MissingFileError(f"nothing was written for {target}")
        _flush(temporary)
        if target.is_dir() or (temporary.is_dir() and target.exists()):
            remove(aside)
            target.rename(aside)
        try:
            temporary.rename(target)
        except BaseException:
            if aside.exists() and not target.exists():
                aside.rename(target)
            raise
        _flush_folder(target.parent)
        remove(aside)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise NoRoomError(
            f"{error.strerror}: {target} needs more than the {size_of(temporary):,} bytes that were written, "
            f"{_free(target.parent):,} are free; what was there is kept"
        ) from error
    finally:
        remove(temporary)
        for folder in made:  # only those that this call made and that stayed empty
            with contextlib.suppress(OSError):
                folder.rmdir()


def _check_room(target: Path, needs: int) -> None:
    free = _free(target.parent)
    if needs > free:
        raise NoRoomError(
            f"No space left on device: {target} needs {needs:,} bytes, {free:,} are free; free some, or choose "
            "another place"
        )


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def write_text(target: str | os.PathLike[str], text: str) -> Path:
    """Writes UTF-8 text so that `target` holds either its old content or all of the new one."""
    return write_bytes(target, text.encode("utf-8"))


def write_bytes(target: str | os.PathLike[str], data: bytes) -> Path:
    """Writes bytes so that `target` holds either its old content or all of the new one."""
    with replacing(target, needs=len(data)) as temporary:
        temporary.write_bytes(data)
    return Path(target)


def write_json(target: str | os.PathLike[str], value: Any) -> Path:
    """Writes `value` as indented JSON; NaN and infinities are refused, JSON has no such numbers."""
    return write_text(target, json.dumps(value, indent=2, allow_nan=False) + "\n")


def files_below(path: str | os.PathLike[str]) -> list[Path]:
    """Every regular file at or below `path`, sorted, leftovers of interrupted writes excluded."""
    root = Path(path)
    if root.is_file():
        return [root]
    found = (p for p in root.rglob("*") if p.is_file())
    return sorted(p for p in found if not any(_is_leftover(part) for part in p.relative_to(root).parts))


def size_of(path: str | os.PathLike[str]) -> int:
    """Bytes of a file, or of all files below a folder."""
    return sum(p.stat().st_size for p in files_below(path))


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Removes what killed writers left below a folder that nobody else writes to now."""
    for path in sorted(Path(folder).rglob(".*"), reverse=True):
        if ".tmp." in path.name and path.exists():
            remove(path)


def sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file as hexadecimal."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def tree_digest(path: str | os.PathLike[str]) -> str:
    """One SHA-256 over the names and contents of all files at or below `path`."""
    root, digest = Path(path), hashlib.sha256()
    for file in files_below(root):
        digest.update(f"{file.relative_to(root)}\0{sha256(file)}\n".encode())
    return digest.hexdigest()


def _is_leftover(name: str) -> bool:
    return name.startswith(".") and (".tmp." in name or name.endswith(".old"))


def _make_folders(folder: Path) -> list[Path]:
    """Makes the folder and its parents; returns those that were missing, innermost first."""
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _flush(path: Path) -> None:
    for found in [path] if path.is_file() else [path, *path.rglob("*")]:
        if found.is_dir():
            _flush_folder(found)
        else:
            with found.open("rb") as handle:
                os.fsync(handle.fileno())


def _flush_folder(path: Path) -> None:
    if os.name == "nt":  # Windows cannot open a folder for flushing
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Removes a file or a folder with all that is in it; nothing if it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
