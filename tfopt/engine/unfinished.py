"""The folder of a batch prediction that is not finished: shards that are, and the blocks of the next one."""

import dataclasses
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic
from filelock import FileLock, Timeout

from tfopt._base.files import remove, remove_leftovers, replacing, write_json
from tfopt._base.foreign import read_json
from tfopt.data.records.fields import Field
from tfopt.data.records.framing import scan_records
from tfopt.data.records.manifest import SPLIT, Manifest, shards_of, write_manifest
from tfopt.engine.answering import Block
from tfopt.errors import DataError, InputError

_JOB, _FIELDS, _LOCK = "job.json", "fields.json", "job.lock"


class Unfinished:
    """Takes answers in their order; one process at a time.

    Args:
        folder: of it. Shards of the same job are kept; what another job left there is removed.
        facts: that tell the job.
        least: records of a shard.
        compression: of them.

    Raises:
        InputError: another process works there, or the folder is none of a batch prediction.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any], *, least: int, compression: str) -> None:
        self._folder, self._least, self._compression = folder, least, compression
        self._counts: list[int] = []
        self._blocks: list[Block] = []
        self._fields: dict[str, Field] = {}
        if folder.exists() and not (folder / _JOB).exists():
            raise InputError(f"{folder} is where unfinished answers go, and holds something else; move it away")
        if not folder.exists():
            with replacing(folder) as temporary:
                temporary.mkdir()
                write_json(temporary / _JOB, facts)
        self._lock = FileLock(folder / _LOCK)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise InputError(
                f"another process answers into {folder}; wait for it, or choose another folder"
            ) from None
        remove_leftovers(folder)
        if read_json(folder / _JOB, "job") == dict(facts):
            self._go_on()
            return
        for path in folder.iterdir():
            if path.name not in (_LOCK, _JOB):
                remove(path)
        write_json(folder / _JOB, facts)

    def _go_on(self) -> None:
        """Takes over what was finished; a shard that is damaged is done again, with those behind it."""
        if (self._folder / _FIELDS).exists():
            stored = read_json(self._folder / _FIELDS, "fields")
            self._fields = pydantic.TypeAdapter(dict[str, Field]).validate_python(stored)
            while (count := self._whole(len(self._counts))) is not None:
                self._counts.append(count)

    def _whole(self, number: int) -> int | None:
        """Records of a shard, which its name says as well: one that is cut between two looks healthy alone."""
        path = next(self._folder.glob(f"{number:05d}-*.shard"), None)
        if path is None:
            return None
        try:
            count = sum(1 for _ in scan_records(path, self._compression))
        except DataError:
            return None
        return count if path == self._shard(number, count) else None

    def _shard(self, number: int, count: int) -> Path:
        return self._folder / f"{number:05d}-{count}.shard"

    @property
    def rows(self) -> int:
        """That are answered."""
        return sum(self._counts) + sum(block.rows for block in self._blocks)

    def add(self, block: Block) -> None:
        """Takes the answers that come next.

        Raises:
            DataError: they have other outputs than those before.
        """
        if self._fields and block.fields != self._fields:
            raise DataError(f"outputs differ between blocks: {self._fields} and {block.fields}")
        if not self._fields:
            self._fields = block.fields
            write_json(self._folder / _FIELDS, {name: dataclasses.asdict(f) for name, f in block.fields.items()})
        self._blocks.append(block)
        if sum(one.rows for one in self._blocks) >= self._least:
            self._write()

    def _write(self) -> None:
        count = sum(block.rows for block in self._blocks)
        for path in self._folder.glob(f"{len(self._counts):05d}-*.shard"):  # one that was damaged
            remove(path)
        with replacing(self._shard(len(self._counts), count)) as path:
            path.write_bytes(b"".join(block.content for block in self._blocks))
        self._counts.append(count)
        self._blocks = []

    def finish(self, out: Path) -> Manifest:
        """Makes the finished folder of it, and removes this one.

        Raises:
            DataError: there were no rows.
        """
        if self._blocks:
            self._write()
        if not self._counts:
            self.close()
            remove(self._folder)
            raise DataError("there is no data to answer")
        with replacing(out) as temporary:
            temporary.mkdir()
            paths = []
            for number, count in enumerate(self._counts):
                paths.append(temporary / f"{SPLIT}-{number:05d}-of-{len(self._counts):05d}.tfrecord")
                _link(self._shard(number, count), paths[-1])
            manifest = Manifest(
                sum(self._counts), shards_of(paths, self._counts), fields=self._fields,
                compression=self._compression,
            )  # fmt: skip
            write_manifest(temporary, SPLIT, manifest)
        self.close()
        remove(self._folder)
        return manifest

    def close(self) -> None:
        """Lets others work in the folder."""
        self._lock.release()


def _link(source: Path, target: Path) -> None:
    """The same file at another place, or a copy where the disk has no such links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
