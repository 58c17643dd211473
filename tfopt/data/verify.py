"""Reads packed data to the last byte, and every record for what it must hold."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfopt._base.files import existing
from tfopt.data.features import Feature
from tfopt.data.llama2c_tokenizer import Llama2cTokenizer
from tfopt.data.records.fields import Field
from tfopt.data.records.framing import scan_records
from tfopt.data.records.manifest import MANIFEST_SUFFIX, Manifest, check_shards, read_manifest, splits
from tfopt.data.tokenizers import load_tokenizer
from tfopt.errors import DataError

_IDS, _LABEL, _SEGMENTS = "input_ids", "label", "segment_lengths"


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
    fields = manifest.schema_fields
    needed = {*manifest.features, *([_LABEL] if manifest.labels else []), *([_IDS] if _SEGMENTS in fields else [])}
    if not needed <= set(fields):
        raise DataError(
            f"the manifest of split {split!r} in {folder} lacks the features {sorted(needed - set(fields))}"
        )
    limits = _limits(manifest, vocabulary)
    lengths: list[int] = []
    counts = np.zeros(len(manifest.labels), np.int64)
    for shard in manifest.shards:
        records = 0
        for where, values in _values(folder / shard.file, manifest):
            for name, found in values.items():
                _check_values(f"{where}: {name!r}", found, fields[name], limit=limits[name])
            _check_lists(where, values, manifest)
            lengths.append(len(values.get(_IDS, ())))
            records += 1
            if manifest.labels:
                counts[values[_LABEL][0]] += 1
        if records != shard.records:
            raise DataError(f"{folder / shard.file} holds {records} records, the manifest says {shard.records}")
    told = {"records": manifest.records, "tokens": manifest.tokens, "max_length": manifest.max_length,
            "class_counts": manifest.class_counts}  # fmt: skip
    read = {"records": len(lengths), "tokens": sum(lengths), "max_length": max(lengths, default=0),
            "class_counts": counts.tolist()}  # fmt: skip
    if manifest.features:
        del told["class_counts"]
    if _IDS not in fields or not manifest.length_limit:  # records of other features than text
        told = {name: told[name] for name in ("records", "class_counts") if name in told}
    for name, value in told.items():
        if read[name] != value:
            raise DataError(f"split {split!r} of {folder} has {name} {read[name]}, its manifest says {value}")


def _limits(manifest: Manifest, vocabulary: int | None) -> dict[str, int | None]:
    """How many different values each feature may store, from 0 on; None for any."""
    found = {name: field.limit for name, field in manifest.schema_fields.items()}
    if _LABEL in found and manifest.labels and not manifest.features:
        found[_LABEL] = len(manifest.labels)
    if _IDS in found and found[_IDS] is None:
        found[_IDS] = vocabulary
    for name, kind in manifest.features.items():
        feature = Feature(name, kind)  # type: ignore[arg-type]
        classes = manifest.heads.get(name) or manifest.labels
        if kind == "tokens":
            found[name] = vocabulary
        elif kind != "number" and classes:
            found[name] = len(classes) + feature.shift
    return found


def _values(path: Path, manifest: Manifest) -> Iterator[tuple[str, dict[str, Any]]]:
    from google.protobuf.message import DecodeError
    from tensorflow.core.example.example_pb2 import Example

    for number, record in enumerate(scan_records(path, manifest.compression)):
        where = f"{path}: record {number}"
        try:
            stored = Example.FromString(record).features.feature
        except DecodeError as error:
            raise DataError(f"{where} is no tf.train.Example") from error
        yield (
            where,
            {name: _list(where, name, stored, field=field) for name, field in manifest.schema_fields.items()},
        )


_LISTS = {"int64": ("int64_list", "integers"), "float32": ("float_list", "numbers"),
          "string": ("bytes_list", "texts"), "bytes": ("bytes_list", "bytes")}  # fmt: skip


def _list(where: str, name: str, stored: Mapping[str, Any], *, field: Field) -> list[Any]:
    if name not in stored:
        raise DataError(f"{where} has no feature {name!r}; it has {', '.join(sorted(stored)) or 'none'}")
    kind, (wanted, what) = stored[name].WhichOneof("kind"), _LISTS[field.dtype]
    if kind != wanted:
        raise DataError(f"{where}: {name!r} must be a list of {what}, it is {kind or 'nothing'}")
    return list(getattr(stored[name], wanted).value)


def _check_values(where: str, values: list[Any], field: Field, *, limit: int | None) -> None:
    """Compares one feature of a record with what it must be."""
    fits = bool(values) and len(values) % field.row == 0 if field.is_ragged else len(values) == field.row
    if not fits:
        wanted = (
            f"{field.row}" if not field.is_ragged else "some" if field.row == 1 else f"a multiple of {field.row}"
        )
        raise DataError(f"{where} has {len(values)} values, it must have {wanted}")
    if field.dtype == "int64" and (min(values) < 0 or (limit is not None and max(values) >= limit)):
        wrong = min(values) if min(values) < 0 else max(values)
        most = "" if limit is None else f" to {limit - 1}"
        raise DataError(f"{where} must be from 0{most}, got {wrong}")
    if field.dtype == "float32" and not np.isfinite(values).all():
        raise DataError(f"{where} holds NaN or infinity")
    if field.dtype == "string":
        try:
            values[0].decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{where} is not UTF-8: {error}") from error


def _check_lists(where: str, values: dict[str, Any], manifest: Manifest) -> None:
    """What features of a record must have in common: a tag for each token, and sequences as long as the record."""
    for name, kind in manifest.features.items():
        if kind == "tags" and len(values[name]) != len(values[_IDS]):
            raise DataError(
                f"{where}: {name!r} has {len(values[name])} values, the record has {len(values[_IDS])} tokens"
            )
    if _SEGMENTS in values and sum(values[_SEGMENTS]) != len(values[_IDS]):
        raise DataError(f"{where}: its sequences have {sum(values[_SEGMENTS])} tokens, it has {len(values[_IDS])}")
