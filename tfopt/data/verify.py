"""Reads packed data to the last byte, and every record for what it must hold."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfopt._base.files import existing
from tfopt.data.features import Feature
from tfopt.data.llama2c_tokenizer import Llama2cTokenizer
from tfopt.data.pack import MANIFEST_SUFFIX, Manifest, check_shards, read_manifest, splits
from tfopt.data.tfrecord import scan_records
from tfopt.data.tokenizers import load_tokenizer
from tfopt.errors import DataError

_IDS, _LABEL = "input_ids", "label"


def verify(path: str | Path) -> dict[str, int]:
    """Reads a packed folder, or one TFRecord file, to its last byte.

    Of a folder, every record is compared with the manifest and the tokenizer: it has the features that it must
    have, of integers, in the range of the classes and of the vocabulary, and together they come to what the
    manifest says.

    Returns:
        Counts: "files", "records" and "bytes".

    Raises:
        DataError: damage, or a disagreement with a manifest; the file, and the record in it, are named.
    """
    path = existing(path, "packed data")
    if path.is_file():
        records = sum(1 for _ in scan_records(path))
        if not records:
            raise DataError(f"{path} holds no records")
        return {"files": 1, "records": records, "bytes": path.stat().st_size}
    found = {split: read_manifest(path, split) for split in splits(path)}
    if not found:
        raise DataError(f"{path} holds no pack (no *{MANIFEST_SUFFIX})")
    vocabulary = _vocabulary(path)
    for split, manifest in found.items():
        check_shards(path, manifest)
        _check_split(path, split, manifest, vocabulary=vocabulary)
    shards = [shard for manifest in found.values() for shard in manifest.shards]
    return {
        "files": len(shards), "records": sum(m.records for m in found.values()),
        "bytes": sum(shard.bytes for shard in shards),
    }  # fmt: skip


def _vocabulary(folder: Path) -> int | None:
    """Tokens of the tokenizer beside the records, or None."""
    if (folder / "tokenizer.json").exists():
        return int(load_tokenizer(folder).get_vocab_size())
    if (folder / "tokenizer.bin").exists():
        return Llama2cTokenizer.read(folder / "tokenizer.bin").get_vocab_size()
    return None


def _check_split(folder: Path, split: str, manifest: Manifest, *, vocabulary: int | None) -> None:
    features = [Feature(name, kind) for name, kind in manifest.features.items()]  # type: ignore[arg-type]
    if not features:
        features = [Feature(_IDS, "tokens"), *([Feature(_LABEL, "class")] if manifest.labels else [])]
    limits = _limits(manifest, features, vocabulary)
    lengths: list[int] = []
    counts = np.zeros(len(manifest.labels), np.int64)
    for shard in manifest.shards:
        records = 0
        for where, values in _values(folder / shard.file, features):
            _check_record(where, values, features, limits=limits)
            lengths.append(len(values[_IDS]))
            records += 1
            if manifest.labels:
                counts[values[_LABEL][0]] += 1
        if records != shard.records:
            raise DataError(f"{folder / shard.file} holds {records} records, the manifest says {shard.records}")
    told = {"records": manifest.records, "tokens": manifest.tokens, "max_length": manifest.max_length,
            "class_counts": manifest.class_counts}  # fmt: skip
    read = {"records": len(lengths), "tokens": sum(lengths), "max_length": max(lengths, default=0),
            "class_counts": counts.tolist()}  # fmt: skip
    for name, value in told.items():
        if read[name] != value and not (name == "class_counts" and manifest.features):
            raise DataError(f"split {split!r} of {folder} has {name} {read[name]}, its manifest says {value}")


def _limits(manifest: Manifest, features: list[Feature], vocabulary: int | None) -> dict[str, int | None]:
    """How many different values each feature may store, from 0 on; None for any."""
    declared = bool(manifest.features)
    found: dict[str, int | None] = {}
    for feature in features:
        classes = manifest.heads.get(feature.name) or manifest.labels
        if feature.kind == "tokens":
            found[feature.name] = vocabulary
        elif feature.kind == "number" or not classes:
            found[feature.name] = None
        else:
            found[feature.name] = len(classes) + (feature.shift if declared else 0)
    return found


def _values(path: Path, features: list[Feature]) -> Iterator[tuple[str, dict[str, list[int]]]]:
    from google.protobuf.message import DecodeError
    from tensorflow.core.example.example_pb2 import Example

    for number, record in enumerate(scan_records(path)):
        where = f"{path}: record {number}"
        try:
            stored = Example.FromString(record).features.feature
        except DecodeError as error:
            raise DataError(f"{where} is no tf.train.Example") from error
        yield where, {f.name: _integers(where, f.name, stored) for f in features}


def _integers(where: str, name: str, stored: Mapping[str, Any]) -> list[int]:
    if name not in stored:
        raise DataError(f"{where} has no feature {name!r}; it has {', '.join(sorted(stored)) or 'none'}")
    kind = stored[name].WhichOneof("kind")
    if kind != "int64_list":
        raise DataError(f"{where}: {name!r} must be a list of integers, it is {kind or 'nothing'}")
    return list(stored[name].int64_list.value)


def _check_record(
    where: str, values: dict[str, list[int]], features: list[Feature], limits: dict[str, int | None]
) -> None:
    tokens = len(values[_IDS])
    for feature in features:
        found, limit = values[feature.name], limits[feature.name]
        wanted = tokens if feature.is_list else 1
        if len(found) != wanted or not found:
            raise DataError(f"{where}: {feature.name!r} has {len(found)} values, it must have {wanted or 'some'}")
        if min(found) < 0 or (limit is not None and max(found) >= limit):
            wrong = min(found) if min(found) < 0 else max(found)
            most = "" if limit is None else f" to {limit - 1}"
            raise DataError(f"{where}: {feature.name!r} must be from 0{most}, got {wrong}")
