"""What packed data holds: counts, classes and lengths."""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

from tfopt._base.files import existing
from tfopt.data.batches import record_lengths
from tfopt.data.records.manifest import MANIFEST_SUFFIX, check_shards, read_manifest, splits
from tfopt.errors import DataError


def describe(folder: str | Path) -> dict[str, Any]:
    """The manifests of a packed folder as plain values, with a histogram of lengths of those that hold tokens.

    Raises:
        DataError: a shard disagrees with its manifest, or holds no records of ours.
    """
    found = {}
    for split in splits(existing(folder, "packed data folder")):
        manifest = read_manifest(folder, split)
        check_shards(folder, manifest)
        found[split] = dataclasses.asdict(manifest)
        if "input_ids" in manifest.schema_fields:
            histogram = Counter(-(-int(n) // 16) * 16 for n in record_lengths(folder, manifest))
            found[split]["length_histogram"] = {f"<= {k}": histogram[k] for k in sorted(histogram)}
    if not found:
        raise DataError(f"{folder} holds no pack (no *{MANIFEST_SUFFIX})")
    return found
