"""Writes records as shards: block by block, so that what is held does not grow with the input."""

import contextlib
import gzip
import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfopt._base.files import replacing
from tfopt.data.records.encode import encode_examples
from tfopt.data.records.fields import Column, Field, Fields, columns_of
from tfopt.data.records.manifest import COMPRESSIONS, SPLIT, Manifest, shards_of, splits, write_manifest
from tfopt.errors import DataError, InputError

_GZIP_LEVEL = 6
# Records that are laid out at once: what is indexed then stays in the cache of a core.
_AT_ONCE = 4096


class ShardWriter:
    """Files of one split that grow block by block; each block is spread over all of them.

    The names say how many there are, so files are renamed at the end, when that is known.
    """

    def __init__(self, folder: Path, split: str, shards: int) -> None:
        if shards < 1:
            raise InputError(f"shards must be 1 or more, got {shards}")
        self._folder, self._split = folder, split
        self._parts = [folder / f"{split}-{i:05d}.part" for i in range(shards)]
        self._records = [0] * shards

    @property
    def records(self) -> int:
        return sum(self._records)

    def add(self, parts: Iterable[tuple[int, int, bytes]]) -> None:
        """Appends encoded records: the number of a shard, how many there are, and their bytes."""
        for shard, count, content in parts:
            with self._parts[shard].open("ab") as file:
                file.write(content)
            self._records[shard] += count

    def take(self, shard: int, records: int, path: Path) -> None:
        """Takes a file that holds all records of a shard."""
        path.rename(self._parts[shard])
        self._records[shard] = records

    def close(self, **facts: Any) -> Manifest:
        """Names the files that hold records and writes the manifest.

        Args:
            **facts: what the manifest says beyond records and shards.

        Raises:
            DataError: there are no records.
        """
        kept = [i for i, count in enumerate(self._records) if count]
        if not kept:
            raise DataError(f"split {self._split!r} has no records to write")
        paths = [self._folder / f"{self._split}-{i:05d}-of-{len(kept):05d}.tfrecord" for i in range(len(kept))]
        for index, path in zip(kept, paths, strict=True):
            self._parts[index].rename(path)
        for part in self._parts:  # of shards without records
            part.unlink(missing_ok=True)
        written = shards_of(paths, [self._records[i] for i in kept])
        manifest = Manifest(records=self.records, shards=written, **facts)
        write_manifest(self._folder, self._split, manifest)
        return manifest


def encode_block(
    fields: Fields,
    columns: Mapping[str, Column],
    *,
    shards: int,
    key: tuple[int, int],
    shuffle: bool = True,
    compression: str = "",
) -> list[tuple[int, int, bytes]]:
    """A block of records as `ShardWriter.add` takes it: shuffled, and spread evenly over the shards.

    Args:
        fields, columns: the records.
        shards: how many there are.
        key: the seed and the number of the block, on which the order depends and nothing else.
        shuffle: else records keep their order, which only one shard shows.
        compression: "" or "GZIP".
    """
    count = next(iter(columns.values())).lengths.size
    if shuffle:
        order = np.random.default_rng(key).permutation(count)
        columns = {name: column.take(order) for name, column in columns.items()}
    cuts = np.linspace(0, count, shards + 1).astype(int).tolist()
    found = []
    for place, (start, stop) in enumerate(itertools.pairwise(cuts)):
        content = b"".join(
            encode_examples(fields, {name: c.between(at, min(at + _AT_ONCE, stop)) for name, c in columns.items()})[
                0
            ]
            for at in range(start, stop, _AT_ONCE)
        )
        if content:
            packed = gzip.compress(content, _GZIP_LEVEL, mtime=0) if compression else content
            # Blocks begin at another shard each, so that what is left over does not gather in the first.
            found.append(((place + key[1]) % shards, stop - start, packed))
    return found


def write_records(
    folder: str | Path,
    batches: Iterable[Mapping[str, Any]],
    *,
    fields: Mapping[str, Field],
    split: str = SPLIT,
    shards: int = 1,
    compression: str = "",
    shuffle: bool = False,
    seed: int = 0,
) -> Manifest:
    """Writes records of any features, for example the outputs of a model or data for a calibration.

    The folder appears whole or not at all; one that holds packed records is replaced, any other is refused. No more
    than one batch is held.

    Args:
        folder: to create.
        batches: values by name for some records each: arrays with a row for each record, or lists with a value for
            each. A batch is one block, which is spread over the shards.
        fields: name of a feature -> its dtype and shape.
        split: name of the split.
        shards: files to write; never more than there are records.
        compression: "" or "GZIP".
        shuffle: the records of a batch among themselves.
        seed: of that.

    Raises:
        InputError: `folder` is not empty and holds no packed records, or another compression.
        DataError: no records, or values that do not fit the fields.
    """
    if compression not in COMPRESSIONS:
        raise InputError(f"compression must be '' or 'GZIP', got {compression!r}")
    with new_pack(folder) as temporary:
        writer = ShardWriter(temporary, split, shards)
        for number, batch in enumerate(batches):
            columns = columns_of(fields, batch)
            writer.add(encode_block(
                fields, columns, shards=shards, key=(seed, number), shuffle=shuffle, compression=compression
            ))  # fmt: skip
        return writer.close(fields=dict(fields), compression=compression)


@contextlib.contextmanager
def new_pack(folder: str | Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder`, whole or not at all; see `_base.files.replacing`.

    Raises:
        InputError: it is a file, or a folder with something else than packed records in it.
    """
    folder = Path(folder)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not splits(folder)):
        raise InputError(f"{folder} is not empty and holds no pack; choose another folder")
    with replacing(folder) as temporary:
        temporary.mkdir()
        yield temporary
