"""Writes a store: tensors of a model, a file or a dictionary, in shards."""

import concurrent.futures
import contextlib
import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfopt._base.cores import usable_cores
from tfopt._base.files import replacing
from tfopt.errors import DataError, InputError
from tfopt.store.codecs import checksum, encode
from tfopt.store.files import write_hdf5, write_safetensors
from tfopt.store.index import FORMATS, Index, Part, Tensor, is_store, write_index
from tfopt.store.reading import Store
from tfopt.store.sources import Named, members_of, tensors_of

_SHARD_BYTES = 2 * 2**30


@dataclasses.dataclass(frozen=True)
class Settings:
    """How tensors are stored; see `save`."""

    format: str = "safetensors"
    shard_bytes: int = _SHARD_BYTES
    compression: str | None = None
    sparse: bool = True
    narrow: bool = False
    int8: bool = False

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise InputError(f"format must be safetensors or hdf5, got {self.format!r}")
        if self.shard_bytes < 1:
            raise InputError(f"shard_bytes must be 1 or more, got {self.shard_bytes}")
        if self.compression not in (None, "gzip", "lzf"):
            raise InputError(f"compression must be None, 'gzip' or 'lzf', got {self.compression!r}")
        if self.compression is not None and self.format != "hdf5":
            raise InputError("only format='hdf5' is compressed")


def save(
    source: Any,
    folder: str | Path,
    *,
    format: str = "safetensors",
    shard_bytes: int = _SHARD_BYTES,
    compression: str | None = None,
    sparse: bool = True,
    narrow: bool = False,
    int8: bool = False,
    base: str | Path | None = None,
) -> Store:
    """Writes the weights of a model, or of a file, as a store; the folder appears whole or not at all.

    Of a file, tensors are read and written a shard at a time, and no model is built.

    Args:
        source: a Keras model of either generation; the path of a `.keras`, `.weights.h5` or `.h5` file, of a
            SavedModel, or of another store; or arrays by name.
        folder: to create; an earlier store in it is replaced.
        format: "safetensors", which is mapped into memory, or "hdf5".
        shard_bytes: of a file, about; a larger tensor has a file of its own.
        compression: of HDF5, "gzip" or "lzf".
        sparse: store tensors as values and places where that takes less; exact.
        narrow: store tensors of at most 256 different values as numbers of one byte; exact.
        int8: store matrices as whole numbers of one byte with a scale for each output; rounds them.
        base: another store; what equals it is left out, and of what differs only the difference is stored.

    Raises:
        InputError: `folder` holds something else, or settings that do not fit.
        ModelFileError: a damaged file.
    """
    settings = Settings(format, shard_bytes, compression, sparse=sparse, narrow=narrow, int8=int8)
    folder = Path(folder)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not is_store(folder)):
        raise InputError(f"{folder} is not empty and holds no store of weights; choose another folder")
    other = None if base is None else Store(base)
    if other is not None and folder.resolve() in other.chain():
        raise InputError(f"{folder} cannot be a difference to itself, nor to one that is a difference to it")
    with replacing(folder) as temporary, contextlib.closing(tensors_of(source)) as tensors:
        temporary.mkdir()
        for name, content in members_of(source).items():
            (temporary / name).write_bytes(content)
        index = _write(tensors, temporary, settings, other=other)
        if other is not None:
            where = os.path.relpath(other.folder.resolve(), folder.resolve())
            index = dataclasses.replace(index, base=where, base_digest=other.digest)
        write_index(temporary, index)
    return Store(folder)


def _write(tensors: Iterable[tuple[str, Named]], folder: Path, settings: Settings, *, other: Store | None) -> Index:
    """Writes shards, several at a time, and returns what they hold."""
    facts: dict[str, Tensor] = {}
    written: list[Path] = []
    with concurrent.futures.ThreadPoolExecutor(usable_cores()) as pool:
        under_way: list[concurrent.futures.Future[None]] = []
        for number, shard in enumerate(_shards(tensors, settings, other, facts=facts)):
            path = folder / _file_name(number + 1, settings)
            written.append(path)
            under_way.append(pool.submit(_write_file, path, shard, settings))
            while len(under_way) >= usable_cores():
                under_way.pop(0).result()
        for future in under_way:
            future.result()
    return Index(facts, settings.format, {path.name: path.stat().st_size for path in written})  # type: ignore[arg-type]


def _file_name(number: int, settings: Settings) -> str:
    return f"model-{number:05d}{'.safetensors' if settings.format == 'safetensors' else '.h5'}"


def _shards(
    tensors: Iterable[tuple[str, Named]],
    settings: Settings,
    other: Store | None,
    *,
    facts: dict[str, Tensor],
) -> Iterator[dict[str, np.ndarray]]:
    """Arrays of one file each; `facts` gets what is known of every tensor."""
    shard: dict[str, np.ndarray] = {}
    number, used = 1, 0
    for name, named in tensors:
        base = other[name] if other is not None and name in other else None
        encoding, parts = encode(
            named.value, sparse=settings.sparse, narrow=settings.narrow, int8=settings.int8, base=base
        )
        size = sum(part.nbytes for part in parts.values())
        if shard and used + size > settings.shard_bytes:
            yield shard
            shard, used, number = {}, 0, number + 1
        if name in facts or any(name + suffix in facts or name + suffix in shard for suffix in parts):
            raise DataError(f"two tensors are called {name!r}, or one as a part of another is")
        file = _file_name(number, settings)
        places = {suffix: Part(file, checksum(part)) for suffix, part in parts.items()}
        value = named.value
        facts[name] = Tensor(
            value.dtype.name, value.shape, encoding, parts=places, keras=named.keras, variable=named.variable
        )
        shard |= {name + suffix: part for suffix, part in parts.items()}
        used += size
    if shard:
        yield shard


def _write_file(path: Path, arrays: Mapping[str, np.ndarray], settings: Settings) -> None:
    if settings.format == "safetensors":
        write_safetensors(path, arrays)
    else:
        write_hdf5(path, arrays, settings.compression)
