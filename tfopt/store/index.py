"""The index of a store: every tensor with its dtype, shape, encoding and place.

It is that of Hugging Face (`model.safetensors.index.json`, a `weight_map` of tensors to files), with what is ours
below `metadata`, so that dense stores in safetensors are read by anything that reads those.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic

from tfopt._base.files import existing, write_json
from tfopt._base.foreign import inside, read_json, regular
from tfopt.errors import DataError, MissingFileError

INDEX = "model.safetensors.index.json"
Encoding = Literal["dense", "sparse", "table", "int8", "delta", "same"]
FORMATS = ("safetensors", "hdf5")


@dataclasses.dataclass(frozen=True)
class Part:
    """One stored array: its file, and a checksum of its bytes, 64 bits of XXH3 in hexadecimal."""

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")
    file: str
    xxh3: str


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor.

    Attributes:
        dtype: name of a NumPy dtype, or "bfloat16".
        shape: sizes.
        encoding: how it is stored; see `store.codecs`.
        parts: suffix of an array that is stored for it -> where it is; "" for the tensor itself.
        keras: its name in the weights file of Keras, where that is known.
        variable: full name of the variable, as a SavedModel keeps it, where that is known.
    """

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")
    dtype: str
    shape: tuple[int, ...]
    encoding: Encoding
    parts: dict[str, Part]
    keras: str = ""
    variable: str = ""

    @property
    def bytes(self) -> int:
        """That it takes when it is read."""
        return math.prod(self.shape) * dtype_of(self.dtype).itemsize


@dataclasses.dataclass(frozen=True)
class Index:
    """What a store holds.

    Attributes:
        tensors: by name.
        format: of the files, "safetensors" or "hdf5".
        files: name -> bytes.
        base: where the store lies that this one is a difference to, relative to its folder; "" for none.
        base_digest: of that store's index.
        version: of this layout.
    """

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")
    tensors: dict[str, Tensor]
    format: Literal["safetensors", "hdf5"]
    files: dict[str, int]
    base: str = ""
    base_digest: str = ""
    version: Literal[1] = 1


def dtype_of(name: str) -> np.dtype[Any]:
    """The NumPy dtype of a name; "bfloat16" and others of `ml_dtypes` included.

    Raises:
        DataError: there is no such dtype, or it is none of numbers.
    """
    try:
        if name in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
            import ml_dtypes

            return np.dtype(getattr(ml_dtypes, name))
        found = np.dtype(name)
    except (TypeError, ValueError, SyntaxError) as error:
        raise DataError(f"unknown dtype {name!r}") from error
    if found.kind not in "biufc" or found.name != name:
        raise DataError(f"tensors of dtype {name!r} cannot be stored")
    return found


def write_index(folder: Path, index: Index) -> None:
    """Writes it; the folder's files must be there."""
    facts = dataclasses.asdict(index)
    places = {
        name + part: where.file for name, tensor in index.tensors.items() for part, where in tensor.parts.items()
    }
    total = sum(tensor.bytes for tensor in index.tensors.values())
    write_json(folder / INDEX, {"metadata": {"total_size": total, "tfopt": facts}, "weight_map": places})


def is_store(folder: Path) -> bool:
    """Whether the index in a folder is one of ours; that of a sharded model of Hugging Face has the same name."""
    if not (folder / INDEX).is_file():
        return False
    try:
        content = read_json(folder / INDEX, "index of a store")
    except DataError:
        return False
    return isinstance(content, dict) and "tfopt" in (content.get("metadata") or {})


def read_index(folder: str | Path) -> Index:
    """Reads and checks the index of a store: types, sizes, and that files are regular ones inside the folder.

    Raises:
        MissingFileError: no such store.
        DataError: the index cannot be read, or a file differs from it in size.
    """
    path = existing(folder, "store of weights") / INDEX
    content = read_json(path, "index of a store")
    try:
        facts = content["metadata"]["tfopt"]
        found: Index = pydantic.TypeAdapter(Index).validate_python(facts)
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} is not the index of a store that tfopt wrote: it lacks {error}") from error
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise DataError(
            f"{path} is not the index of a store: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        ) from error
    for name, tensor in found.tensors.items():
        dtype_of(tensor.dtype)
        if any(size < 0 for size in tensor.shape):
            raise DataError(f"{path}: tensor {name!r} has the shape {tensor.shape}")
        for part in tensor.parts.values():
            if part.file not in found.files:
                raise DataError(f"{path}: tensor {name!r} lies in {part.file!r}, which the store does not list")
    for name, size in found.files.items():
        try:
            file = existing(inside(Path(folder), name, str(path)), "file of a store")
        except MissingFileError as error:
            raise DataError(f"{path} lists {name[:200]!r} with {size:,} bytes: {error}") from error
        have = regular(file, "file of a store").stat().st_size
        if have != size:
            raise DataError(f"{file} has {have:,} bytes, the store says {size:,}: it is cut or changed")
    return found
