"""Bytes, bits and zeros of an artifact, counted from what is stored."""

import zlib
from pathlib import Path

from tfopt._base.files import files_below
from tfopt.numerics.masks import zero_share
from tfopt.runtime import StoredWeight

_CHUNK = 1 << 20


def gzip_bytes(path: Path) -> int:
    """Bytes of all files at or below `path`, each compressed with gzip level 6."""
    return sum(_compressed(file) for file in files_below(path))


def _compressed(file: Path) -> int:
    packer, total = zlib.compressobj(6, wbits=31), 0
    with file.open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            total += len(packer.compress(chunk))
    return total + len(packer.flush())


def sparsity(weights: list[StoredWeight]) -> float | None:
    """Share of zeros among all elements, or None without weights."""
    return zero_share([w.array for w in weights])


def weight_bits(weights: list[StoredWeight]) -> float | None:
    """Mean bits per element, or None without weights."""
    total = sum(w.array.size for w in weights)
    return sum(w.array.size * w.bits for w in weights) / total if total else None
