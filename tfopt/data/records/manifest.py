"""The manifest beside shards: what a record holds, how many there are, and the SHA-256 of every file."""

import dataclasses
import logging
from collections.abc import Iterable
from pathlib import Path

import pydantic

from tfopt._base.files import existing, sha256, write_json
from tfopt._base.foreign import inside, parse_json, read_text, regular
from tfopt.data.records.fields import Field
from tfopt.data.records.framing import check_framing, readable_records
from tfopt.errors import DataError

SPLIT = "data"
MANIFEST_SUFFIX = ".manifest.json"
COMPRESSIONS = ("", "GZIP")
_log = logging.getLogger(__name__)


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
    """What the shards of a split hold.

    Attributes:
        records: in all shards; fewer than the texts where long ones were dropped.
        shards: the files.
        texts: texts that were given; of text and tokens.
        tokens: token ids in all records.
        max_length: tokens of the longest record.
        length_limit: most tokens that a record could have.
        labels: names of the classes, in the order of their ids; empty for unlabelled records.
        class_counts: records of each class.
        too_long: texts that had more tokens than `length_limit`.
        on_long: what was done with them: "error", "truncate" or "drop".
        longest: tokens of the longest text before that.
        schema: version of this layout.
        features: name of a feature -> its kind, where a task declared them; see `data.features`.
        heads: name of a feature -> its classes, where there are several.
        fields: name of a feature -> its dtype and shape; empty in packs of the first layout.
        compression: of the shards, "" or "GZIP".
        cleaned: what cleaning removed, by its reason -> texts.
    """

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")
    records: int
    shards: list[Shard]
    texts: int = 0
    tokens: int = 0
    max_length: int = 0
    length_limit: int = 0
    labels: list[str] = dataclasses.field(default_factory=list)
    class_counts: list[int] = dataclasses.field(default_factory=list)
    too_long: int = 0
    on_long: str = "error"
    longest: int = 0
    schema: int = 2
    features: dict[str, str] = dataclasses.field(default_factory=dict)
    heads: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    fields: dict[str, Field] = dataclasses.field(default_factory=dict)
    compression: str = ""
    cleaned: dict[str, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.compression not in COMPRESSIONS:
            raise ValueError(f"compression must be '' or 'GZIP', got {self.compression!r}")

    @property
    def schema_fields(self) -> dict[str, Field]:
        """Its fields; those that packs of the first layout had without saying so."""
        if self.fields:
            return self.fields
        if self.features:
            lists = ("tokens", "tags")
            return {name: Field("int64", (None,) if kind in lists else ()) for name, kind in self.features.items()}
        label = {"label": Field("int64", (), len(self.labels))} if self.labels else {}
        return {"input_ids": Field("int64", (None,)), **label}


def splits(folder: str | Path) -> list[str]:
    """Names of the splits that a folder holds."""
    return sorted(p.name.removesuffix(MANIFEST_SUFFIX) for p in Path(folder).glob(f"*{MANIFEST_SUFFIX}"))


def manifest_name(split: str) -> str:
    """Name of the file that describes a split."""
    return f"{split}{MANIFEST_SUFFIX}"


def write_manifest(folder: Path, split: str, manifest: Manifest) -> None:
    """Writes it beside its shards."""
    write_json(folder / manifest_name(split), dataclasses.asdict(manifest))


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


def shard_path(folder: str | Path, shard: Shard) -> Path:
    """Where a shard lies.

    Raises:
        DataError: the manifest names a file elsewhere, or no file.
    """
    if Path(shard.file).name != shard.file:
        raise DataError(f"{folder} has a manifest that names {shard.file!r}; shards lie in the folder itself")
    path = inside(Path(folder), shard.file, f"the manifest of {folder}")
    if not path.exists():
        raise DataError(f"shard {path} is missing; the manifest lists it with {shard.records} records")
    return regular(path, "shard")


def check_shards(folder: str | Path, manifest: Manifest) -> None:
    """Compares every shard with the manifest: a file cut at a record boundary looks healthy alone.

    Raises:
        DataError: a shard is missing, cut or damaged; it is named.
    """
    for shard in manifest.shards:
        _check_shard(folder, shard, manifest.compression)


def _check_shard(folder: str | Path, shard: Shard, compression: str) -> None:
    path = shard_path(folder, shard)
    size = path.stat().st_size
    if size != shard.bytes:
        raise DataError(f"shard {path} is cut or changed: {size} bytes, the manifest says {shard.bytes}")
    if sha256(path) != shard.sha256:
        raise DataError(f"shard {path} is damaged: its SHA-256 differs from the manifest")
    check_framing(path, compression)


def damaged_shards(folder: str | Path, manifest: Manifest) -> dict[str, int]:
    """Shards that differ from the manifest -> records that can still be read; each is logged as a warning.

    Raises:
        DataError: a shard is missing.
    """
    found = {}
    for shard in manifest.shards:
        path = shard_path(folder, shard)
        try:
            _check_shard(folder, shard, manifest.compression)
        except DataError as error:
            count = sum(1 for _ in readable_records(path, manifest.compression))
            _log.warning("%s; %d of its %d records are skipped", error, shard.records - count, shard.records)
            found[shard.file] = count
    return found


def shards_of(paths: Iterable[Path], records: Iterable[int]) -> list[Shard]:
    """What the manifest says of files that were written."""
    return [
        Shard(path.name, count, path.stat().st_size, sha256=sha256(path))
        for path, count in zip(paths, records, strict=True)
    ]
