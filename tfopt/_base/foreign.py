"""Reads small files that nobody here wrote: regular ones, of bounded size, that are the text they should be."""

import json
import re
import stat
from pathlib import Path, PurePosixPath
from typing import Any

from tfopt._base.files import existing
from tfopt._base.limits import MAX_DEPTH, MAX_TEXT_BYTES
from tfopt.errors import DataError, InputError

Error = type[InputError]
_OPEN_OR_CLOSE = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


def regular(path: str | Path, what: str, error: Error = DataError) -> Path:
    """The path of a regular file; opening a pipe would wait for ever, and a device has no end.

    Raises:
        MissingFileError: nothing is there; `what` says what was looked for.
        InputError: as `error`, it is a folder, a pipe or a device.
    """
    found = existing(path, what)
    mode = found.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = "folder" if stat.S_ISDIR(mode) else "pipe" if stat.S_ISFIFO(mode) else "device"
        raise error(f"{what} {found} must be a file, it is a {kind}")
    return found


def read_bytes(path: str | Path, what: str, *, most: int = MAX_TEXT_BYTES, error: Error = DataError) -> bytes:
    """The content of a regular file of at most `most` bytes.

    Raises:
        MissingFileError: nothing is there.
        InputError: as `error`, it is larger or no file.
    """
    found = regular(path, what, error)
    size = found.stat().st_size
    if size > most:
        raise error(f"{what} {found} has {size:,} bytes, more than the {most:,} that are read")
    return found.read_bytes()


def read_text(path: str | Path, what: str, *, most: int = MAX_TEXT_BYTES, error: Error = DataError) -> str:
    """The same as text in UTF-8."""
    return to_text(read_bytes(path, what, most=most, error=error), f"{what} {path}", error)


def read_json(path: str | Path, what: str, *, most: int = MAX_TEXT_BYTES, error: Error = DataError) -> Any:
    """The same as JSON."""
    return parse_json(read_bytes(path, what, most=most, error=error), f"{what} {path}", error)


def to_text(content: bytes, where: str, error: Error = DataError) -> str:
    """Bytes as text.

    Raises:
        InputError: as `error`, they are not UTF-8.
    """
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise error(f"{where} is not text in UTF-8: {problem.reason} at byte {problem.start}") from problem


def check_whole(text: str, what: str) -> None:
    """Refuses halves of characters: what UTF-8 cannot store, as bytes of other encodings become on a command line.

    Raises:
        InputError: there is one; `what` says what the text is.
    """
    try:
        text.encode()
    except UnicodeEncodeError as problem:
        raise InputError(
            f"{what} must be text in UTF-8, it holds half a character at {problem.start}: {text[:40]!r}"
        ) from problem


def parse_json(content: bytes | str, where: str, error: Error = DataError) -> Any:
    """What JSON stands for.

    Raises:
        InputError: as `error`, it is no JSON, has halves of characters, or is nested deeper than anything that is
            read here.
    """
    text = to_text(content, where, error) if isinstance(content, bytes) else content
    try:
        if _depth(text.encode()) > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
        found = json.loads(text)
        if "\\ud" in text.lower():  # halves of characters, which cannot be printed
            json.dumps(found, ensure_ascii=False).encode()
        return found
    except (ValueError, RecursionError) as problem:
        raise error(f"{where} is not JSON that can be read: {problem}") from problem


def _depth(content: bytes) -> int:
    """How deep lists and objects are in one another."""
    if content.count(b"[") + content.count(b"{") <= MAX_DEPTH:
        return 0
    depth = deepest = 0
    for found in _OPEN_OR_CLOSE.finditer(content):
        mark = found.group()
        depth += 1 if mark in (b"[", b"{") else -1 if mark in (b"]", b"}") else 0
        deepest = max(deepest, depth)
    return deepest


def inside(folder: Path, name: Any, where: str, error: Error = DataError) -> Path:
    """The path of a file that a manifest names.

    Raises:
        InputError: as `error`, it leads out of the folder, also by a link.
    """
    plain = isinstance(name, str) and bool(name) and "\0" not in name
    path = PurePosixPath(name) if plain else PurePosixPath("..")
    leads_out = path.is_absolute() or ".." in path.parts or "\\" in str(path)
    if leads_out or not (folder / path).resolve().is_relative_to(folder.resolve()):
        raise error(f"{where} names {name!r}, which leads out of its folder")
    return folder / path
