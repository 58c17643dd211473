"""Packs labelled texts into sharded TFRecord with a manifest that counts and hashes them."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydantic

from tfopt._base.files import existing, replacing, sha256, write_json
from tfopt._base.foreign import inside, parse_json, read_text, regular
from tfopt.data.readers import Texts, label_ids
from tfopt.data.tfrecord import check_framing, encode_records
from tfopt.data.tokenizers import Encoded, OnLong, encode, save_tokenizer
from tfopt.errors import DataError, InputError

SPLIT = "data"
MANIFEST_SUFFIX = ".manifest.json"


@dataclasses.dataclass(frozen=True)
class Shard:
    """One TFRecord file: its name, records, bytes and SHA-256."""

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")
    file: str
    records: int
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a packed folder holds.

    Attributes:
        texts: texts that were given.
        records: records in all shards; fewer than the texts where long ones were dropped.
        tokens: token ids in all records.
        max_length: tokens of the longest record.
        length_limit: most tokens that a record could have.
        labels: names of the classes, in the order of their ids; empty for unlabelled text.
        class_counts: records of each class.
        too_long: texts that had more tokens than `length_limit`.
        on_long: what was done with them: "truncate" or "drop".
        longest: tokens of the longest text before that.
        shards: the files.
        schema: version of this layout.
        features: name of a feature -> its kind, where a task declared them; see `data.features`.
        heads: name of a feature -> its classes, where there are several.
    """

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")
    texts: int
    records: int
    tokens: int
    max_length: int
    length_limit: int
    labels: list[str]
    class_counts: list[int]
    too_long: int
    on_long: str
    longest: int
    shards: list[Shard]
    schema: int = 1
    features: dict[str, str] = dataclasses.field(default_factory=dict)
    heads: dict[str, list[str]] = dataclasses.field(default_factory=dict)


def pack(
    data: Texts,
    tokenizer: Any,
    *,
    out: str | Path,
    max_length: int,
    labels: list[str] | None = None,
    shards: int = 1,
    on_long: OnLong = "error",
    seed: int = 0,
) -> Manifest:
    """Writes the folder `out` with shuffled records, their manifest and the tokenizer.

    The folder appears whole or not at all; one that holds a pack is replaced, any other is refused.

    Args:
        out: folder to create.
        data, tokenizer, max_length, labels, shards, on_long, seed: as for `write_pack`.

    Raises:
        InputError: `out` is a folder with something else in it.
        DataError: an unknown label, or texts that are too long.
    """
    out = Path(out)
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not splits(out)):
        raise InputError(f"{out} is not empty and holds no pack; choose another folder")
    with replacing(out) as folder:
        folder.mkdir()
        manifest = write_pack(
            folder,
            SPLIT,
            data=data,
            tokenizer=tokenizer,
            max_length=max_length,
            labels=labels,
            shards=shards,
            on_long=on_long,
            seed=seed,
        )
        save_tokenizer(tokenizer, folder / "tokenizer.json")
    return manifest


def write_pack(
    folder: Path,
    split: str,
    *,
    data: Texts,
    tokenizer: Any,
    max_length: int,
    labels: list[str] | None = None,
    shards: int = 1,
    on_long: OnLong = "error",
    seed: int = 0,
) -> Manifest:
    """Writes one split into an existing folder: its shards and its manifest.

    Args:
        folder: an existing folder.
        split: name of the split, the first part of every file name.
        data: texts, with labels if `labels` is given.
        tokenizer: see `tfopt.data.tokenizers`.
        max_length: most tokens of one record.
        labels: names of the classes, from `label_names` of the training data; None for no labels.
        shards: files to write; never more than there are records.
        on_long: what happens to texts that are too long; see `encode`.
        seed: seed of the shuffle that spreads the classes over the shards.

    Raises:
        DataError: an unknown label, or texts that are too long.
    """
    ids = None if labels is None else np.array(label_ids(data, labels), np.int64)
    encoded = encode(tokenizer, data.texts, max_length, on_long=on_long, source=data.source)
    ids = None if ids is None else ids[encoded.kept]
    facts: dict[str, Any] = {"texts": len(data), "length_limit": max_length, "on_long": on_long}
    if labels is not None and ids is not None:
        facts |= {"labels": labels, "class_counts": np.bincount(ids, minlength=len(labels)).tolist()}
    return write_encoded(folder, split, encoded, ids=ids, shards=shards, seed=seed, facts=facts)


def write_encoded(
    folder: Path,
    split: str,
    data: Encoded,
    ids: np.ndarray | None,
    shards: int,
    seed: int,
    facts: Mapping[str, Any],
) -> Manifest:
    """Writes the shards and the manifest of records that are token ids already.

    Args:
        folder, split, shards, seed: as for `write_pack`.
        data: the records.
        ids: a class for each record, or None.
        facts: what the manifest says beyond the records: texts, length_limit, on_long, labels, class_counts.
    """
    if shards < 1:
        raise InputError(f"shards must be 1 or more, got {shards}")
    files = _write_shards(folder, split, data, ids=ids, shards=shards, seed=seed)
    manifest = Manifest(
        **{"labels": [], "class_counts": [], **facts},
        records=int(data.lengths.size), tokens=int(data.lengths.sum()), max_length=int(data.lengths.max()),
        too_long=data.too_long, longest=data.longest, shards=files,
    )  # fmt: skip
    write_json(folder / manifest_name(split), dataclasses.asdict(manifest))
    return manifest


def splits(folder: str | Path) -> list[str]:
    """Names of the splits that a folder holds."""
    return sorted(p.name.removesuffix(MANIFEST_SUFFIX) for p in Path(folder).glob(f"*{MANIFEST_SUFFIX}"))


def _write_shards(
    folder: Path, split: str, data: Encoded, ids: np.ndarray | None, shards: int, seed: int
) -> list[Shard]:
    order = np.random.default_rng(seed).permutation(data.lengths.size)
    starts = np.cumsum(data.lengths) - data.lengths
    lengths = data.lengths[order]
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    tokens = data.tokens[np.repeat(starts[order], lengths) + within]
    content, ends = encode_records(tokens, lengths, None if ids is None else ids[order])
    shards = min(shards, lengths.size)
    cuts = np.linspace(0, lengths.size, shards + 1).astype(int)
    offsets = np.concatenate([[0], ends])[cuts]
    files = []
    for index in range(shards):
        path = folder / f"{split}-{index:05d}-of-{shards:05d}.tfrecord"
        path.write_bytes(content[offsets[index] : offsets[index + 1]])
        records = int(cuts[index + 1] - cuts[index])
        files.append(Shard(path.name, records, path.stat().st_size, sha256=sha256(path)))
    return files


def manifest_name(split: str) -> str:
    """Name of the file that describes a split."""
    return f"{split}{MANIFEST_SUFFIX}"


def read_manifest(folder: str | Path, split: str = SPLIT) -> Manifest:
    """Reads the manifest of one split of a packed folder.

    Raises:
        MissingFileError: no such folder, or no manifest in it.
        DataError: the manifest cannot be read.
    """
    path = existing(folder, "packed data folder") / manifest_name(split)
    content = read_text(path, "data manifest")
    parse_json(content, str(path))
    try:
        found = pydantic.TypeAdapter(Manifest).validate_json(content, strict=True)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "all of it"
        raise DataError(f"{path} is not a data manifest: {where}: {first['msg']}") from error
    return found


def check_shards(folder: str | Path, manifest: Manifest) -> None:
    """Compares every shard with the manifest: a file cut at a record boundary looks healthy alone.

    Raises:
        DataError: a shard is missing, cut or damaged; it is named.
    """
    for shard in manifest.shards:
        if Path(shard.file).name != shard.file:
            raise DataError(f"{folder} has a manifest that names {shard.file!r}; shards lie in the folder itself")
        path = inside(Path(folder), shard.file, f"the manifest of {folder}")
        if not path.exists():
            raise DataError(f"shard {path} is missing; the manifest lists it with {shard.records} records")
        regular(path, "shard")
        size = path.stat().st_size
        if size != shard.bytes:
            raise DataError(f"shard {path} is cut or changed: {size} bytes, the manifest says {shard.bytes}")
        if sha256(path) != shard.sha256:
            raise DataError(f"shard {path} is damaged: its SHA-256 differs from the manifest")
        check_framing(path)
