"""The manifest of a finished run: the size and SHA-256 of every file, looked at whenever one of them is opened."""

from pathlib import Path
from typing import NamedTuple

from tfopt._base.files import files_below, sha256
from tfopt._base.foreign import inside, read_json, regular
from tfopt.errors import DataError

MANIFEST, STATE = "manifest.json", "state.json"
_DEEPEST = 3  # folders between a run's and its files


class Entry(NamedTuple):
    """Bytes and SHA-256 of a file."""

    bytes: int
    sha256: str


def read_manifest(folder: Path) -> dict[str, Entry]:
    """The files of a run by their path in its folder.

    Raises:
        DataError: the manifest is damaged, or names files elsewhere.
    """
    path = folder / MANIFEST
    try:
        found = {e["path"]: Entry(e["bytes"], e["sha256"]) for e in read_json(path, "manifest")["files"]}
        if not all(isinstance(size, int) and isinstance(digest, str) for size, digest in found.values()):
            raise TypeError("each file must have a number of bytes and a hash")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a manifest: {error}") from error
    for name in found:
        inside(folder, name, f"the manifest of {folder}")
    return found


def check_entry(folder: Path, name: str, entry: Entry) -> None:
    """Compares a file with its entry.

    Raises:
        DataError: it is missing, or its size or SHA-256 differs.
    """
    path = folder / name
    if not path.exists():
        raise DataError(f"{path} is missing; the manifest lists it")
    size = regular(path, "file of a run").stat().st_size
    if size != entry.bytes:
        raise DataError(f"{path} has {size} bytes, the manifest says {entry.bytes}")
    if sha256(path) != entry.sha256:
        raise DataError(f"{path} is damaged or changed: its SHA-256 differs from the manifest")


def check_if_listed(path: Path) -> None:
    """Compares a file, or those of a folder, with the manifest of the finished run that it lies in, if it does.

    Raises:
        DataError: it differs, or the manifest is damaged.
    """
    path = path.resolve()
    for folder in path.parents[:_DEEPEST]:
        if (folder / MANIFEST).is_file() and (folder / STATE).is_file():
            entries = read_manifest(folder)
            for file in files_below(path):
                name = file.relative_to(folder).as_posix()
                if name in entries:
                    check_entry(folder, name, entries[name])
            return
