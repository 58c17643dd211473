"""Tensors of a Hugging Face folder: one safetensors file or several, mapped into memory, of any float type."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfopt._base.files import existing, replacing, write_json
from tfopt._base.foreign import read_json, regular
from tfopt._base.formats import PICKLES
from tfopt.errors import ModelFileError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE_ADVICE = "convert it with safetensors, where whoever made it is trusted, and give the folder of the result"
_FLOATS = {"F32", "F16", "BF16"}


class Tensors:
    """The stored tensors by name; nothing is read before it is asked for.

    Attributes:
        folder: where they lie.
        shapes: shape by name.
    """

    def __init__(self, folder: Path, readers: list[Any]) -> None:
        self.folder = folder
        self._readers = {name: reader for reader in readers for name in reader.keys()}  # noqa: SIM118
        self.shapes = {n: tuple(r.get_slice(n).get_shape()) for n, r in self._readers.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        """A tensor as float32.

        Raises:
            ModelFileError: it is of another type than float32, float16 or bfloat16.
        """
        kind = self._readers[name].get_slice(name).get_dtype()
        if kind not in _FLOATS:
            raise ModelFileError(f"{self.folder}: tensor {name!r} is {kind}, expected one of {sorted(_FLOATS)}")
        return np.asarray(self._readers[name].get_tensor(name)).astype(np.float32)


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Tensors]:
    """The tensors of a folder.

    Raises:
        MissingFileError: no safetensors file.
        ModelFileError: pickles only, an unreadable file, or an index that names what is not there.
    """
    from safetensors import SafetensorError, safe_open

    files = files_of(folder)
    with contextlib.ExitStack() as stack:
        try:
            # NumPy has no bfloat16; TensorFlow has.
            readers = [stack.enter_context(safe_open(path, framework="tf")) for path in files]
            tensors = Tensors(folder, readers)
        except (SafetensorError, OSError) as error:
            raise ModelFileError(f"{folder} holds no readable safetensors file: {error}") from error
        yield tensors


def files_of(folder: Path) -> list[Path]:
    """The safetensors files of a folder.

    Raises:
        MissingFileError: there is none, or the index names one that is not there.
        ModelFileError: pickles only, or an unreadable index.
    """
    if (folder / SINGLE).exists():
        return [regular(folder / SINGLE, "model weights", ModelFileError)]
    if (folder / INDEX).exists():
        index = read_json(folder / INDEX, "index of tensors", error=ModelFileError)
        places = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
            raise ModelFileError(f"{folder / INDEX} is no index of tensors: it needs a weight_map of file names")
        if any(Path(name).name != name for name in places.values()):
            raise ModelFileError(f"{folder / INDEX} names files outside its folder")
        return [regular(folder / name, "model weights", ModelFileError) for name in sorted(set(places.values()))]
    pickles = [
        f.name for f in sorted(folder.iterdir()) if f.suffix in PICKLES or f.name.startswith("pytorch_model")
    ]
    if pickles:
        raise ModelFileError(f"{folder / pickles[0]} is a pickle, which runs code when it is read; {PICKLE_ADVICE}")
    return [existing(folder / SINGLE, "model weights")]


def write_tensors(
    folder: Path, values: Mapping[str, np.ndarray], config: Mapping[str, Any], shard_bytes: int, dtype: str
) -> list[Path]:
    """Writes `config.json` and the tensors, in several files where they take more than `shard_bytes`."""
    import tensorflow as tf
    from safetensors.tensorflow import save_file

    folder.mkdir(parents=True, exist_ok=True)
    width = tf.as_dtype(dtype).size
    shards: list[dict[str, np.ndarray]] = [{}]
    used = 0
    for name, value in values.items():
        if shards[-1] and used + value.size * width > shard_bytes:
            shards.append({})
            used = 0
        shards[-1][name] = value
        used += value.size * width
    files = [folder / (SINGLE if len(shards) == 1 else f"model-{i + 1:05}-of-{len(shards):05}.safetensors")
             for i in range(len(shards))]  # fmt: skip
    for file, shard in zip(files, shards, strict=True):
        with replacing(file, needs=sum(v.size for v in shard.values()) * width) as temporary:
            save_file({n: tf.cast(v, dtype) for n, v in shard.items()}, str(temporary), {"format": "np"})
    if len(files) > 1:
        places = {name: file.name for file, shard in zip(files, shards, strict=True) for name in shard}
        total = sum(v.size for v in values.values()) * width
        files.append(write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places}))
    for old in (folder / SINGLE, folder / INDEX, *folder.glob("model-*-of-*.safetensors")):
        if old not in files:  # of another model: readers would take it for this one's
            old.unlink(missing_ok=True)
    return [*files, write_json(folder / "config.json", dict(config))]
