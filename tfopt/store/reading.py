"""Reads a store a tensor at a time; nothing is held but what is asked for."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tfopt._base.files import sha256
from tfopt.errors import DataError, InputError
from tfopt.store.codecs import checksum, decode
from tfopt.store.files import Hdf5File, SafetensorsFile
from tfopt.store.index import INDEX, Tensor, read_index

_DIFFERENCES = ("same", "delta")
_DEEPEST = 64  # stores that are differences to one another


class Store:
    """Tensors by name.

    Every array is compared with its checksum when it is read; `tensors` has dtypes and shapes without reading any.

    Args:
        folder: from `tfopt.store.save`.

    Raises:
        MissingFileError: no such store, or the one that it is a difference to is gone.
        DataError: a damaged index, or files that differ from it.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._index = read_index(folder)
        self._files: dict[str, Any] = {}
        self._base = self._opened_base(_DEEPEST)

    def _opened_base(self, depth: int) -> "Store | None":
        if not self._index.base:
            return None
        if "\0" in self._index.base:
            raise DataError(f"{self.folder} is a difference to {self._index.base!r}, which is no path")
        where = (self.folder / self._index.base).resolve()
        if where == self.folder.resolve() or not depth:
            raise DataError(f"{self.folder} is a difference to itself, or to too many others")
        base = object.__new__(Store)
        base.folder, base._index, base._files = where, read_index(where), {}
        if base.digest != self._index.base_digest:
            raise DataError(f"{self.folder} is a difference to {where}, which has changed since")
        base._base = base._opened_base(depth - 1)
        return base

    def chain(self) -> list[Path]:
        """Where it lies, and the stores that it is a difference to."""
        return [self.folder.resolve(), *(self._base.chain() if self._base is not None else [])]

    @property
    def digest(self) -> str:
        """SHA-256 of the index, which has checksums of everything."""
        return sha256(self.folder / INDEX)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What is known of each tensor."""
        return self._index.tensors

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __getitem__(self, name: str) -> np.ndarray:
        """A tensor; one that is stored dense in safetensors is a view of the file, copied where it is written to.

        Raises:
            KeyError: there is no such tensor.
            DataError: it is damaged.
        """
        self.check(name)
        return self.unchecked(name)

    def check(self, name: str) -> None:
        """Compares what is stored of a tensor with its checksums.

        Raises:
            KeyError: there is no such tensor.
            DataError: they differ.
        """
        if name not in self.tensors:
            raise KeyError(f"{self.folder} has no tensor {name!r}")
        for suffix, part in self.tensors[name].parts.items():
            if checksum(self._array(name + suffix, part.file)) != part.xxh3:
                raise DataError(f"{self.folder / part.file} is damaged: the checksum of {name + suffix!r} differs")
        if self.tensors[name].encoding in _DIFFERENCES:
            if self._base is None or name not in self._base:
                raise DataError(f"{self.folder}: tensor {name!r} is a difference to nothing")
            self._base.check(name)

    def unchecked(self, name: str) -> np.ndarray:
        """A tensor that `check` was asked about before."""
        tensor = self.tensors[name]
        parts = {suffix: self._array(name + suffix, part.file) for suffix, part in tensor.parts.items()}
        base = self._base.unchecked(name) if self._base is not None and tensor.encoding in _DIFFERENCES else None
        return decode(name, tensor, parts, base=base)

    def _array(self, name: str, file: str) -> np.ndarray:
        if file not in self._files:
            kind = SafetensorsFile if self._index.format == "safetensors" else Hdf5File
            self._files[file] = kind(self.folder / file)
        if name not in self._files[file]:
            raise DataError(f"{self.folder / file} lacks {name!r}, which the index lists")
        found: np.ndarray = self._files[file][name]
        return found

    def layers(self) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        """The path of each layer and its tensors, one layer at a time."""
        names: dict[str, list[str]] = {}
        for name in self.tensors:
            names.setdefault(name.rpartition("/")[0], []).append(name)
        for layer, own in names.items():
            yield layer, {name.rpartition("/")[2]: self[name] for name in own}

    def verify(self) -> int:
        """Reads every tensor and compares it with its checksum; returns how many there are.

        Raises:
            DataError: one is damaged.
        """
        for name in self:
            self[name]
        return len(self)


def open(folder: str | Path) -> Store:
    """Opens a store; see `Store`.

    Raises:
        MissingFileError: no such store.
        DataError: it is damaged.
    """
    if Path(folder).is_file():
        raise InputError(f"{folder} is a file; a store of weights is a folder, which tfopt.store.save makes of it")
    return Store(folder)
