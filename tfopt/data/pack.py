"""Packs texts into sharded TFRecord with a manifest that counts and hashes them, however many there are."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfopt.data.clean import Cleaning, first_of_each
from tfopt.data.job import Counts, Layout, PackJob, make_block, survey
from tfopt.data.readers.base import Piece, Source, of_pieces
from tfopt.data.readers.texts import distinct_labels
from tfopt.data.records.fields import Column, Field
from tfopt.data.records.manifest import SPLIT, Manifest
from tfopt.data.records.write import ShardWriter, encode_block, new_pack
from tfopt.data.tokenizers import Encoded, OnLong, save_tokenizer
from tfopt.errors import InputError

Progress = Callable[[int, int], None]


def pack(
    data: Source,
    tokenizer: Any = None,
    *,
    out: str | Path,
    max_length: int = 128,
    labels: list[str] | None = None,
    shards: int = 1,
    on_long: OnLong = "error",
    seed: int = 0,
    layout: Layout = "tokens",
    compression: str = "",
    cleaning: Cleaning | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> Manifest:
    """Writes the folder `out` with shuffled records, their manifest and the tokenizer.

    The source is read piece by piece and nothing of it is held but, where duplicates are left out, a hash of each
    text. The folder appears whole or not at all; one that holds a pack is replaced, any other is refused. The
    result is the same whatever the number of workers.

    Args:
        data: texts, from `data.readers.open.open_source` or `read_texts`.
        tokenizer: see `data.tokenizers`; none is needed where the layout is "text".
        out: folder to create.
        max_length: most tokens of a text, and of a record.
        labels: names of the classes, from `label_names` of the training data; None for those that the source has,
            if it has labels.
        shards: files to write; never more than there are records.
        on_long: what happens to texts that are too long; see `data.tokenizers.encode`.
        seed: of the order; it spreads the records of each piece over the shards.
        layout: "tokens" for one record a text, "sequences" for several short texts in a record, "text" for texts.
        compression: of the shards, "" or "GZIP".
        cleaning: what is done to each text before.
        workers: processes that read and encode.
        progress: is told how much of the source is done, and how much there is.

    Raises:
        InputError: `out` is a folder with something else in it, or a setting that does not fit.
        DataError: a broken row, an unknown label, or texts that are too long.
    """
    with new_pack(out) as folder:
        manifest = write_pack(
            folder, SPLIT, data=data, tokenizer=tokenizer, max_length=max_length, labels=labels, shards=shards,
            on_long=on_long, seed=seed, layout=layout, compression=compression, cleaning=cleaning, workers=workers,
            progress=progress,
        )  # fmt: skip
        if tokenizer is not None:
            save_tokenizer(tokenizer, folder / "tokenizer.json")
    return manifest


def write_pack(
    folder: Path, split: str, *, data: Source, tokenizer: Any = None, workers: int = 1,
    progress: Progress | None = None, **settings: Any,
) -> Manifest:  # fmt: skip
    """Writes one split into an existing folder: its shards and its manifest.

    Args:
        folder: an existing folder.
        split: name of the split, the first part of every file name.
        data, tokenizer, workers, progress, **settings: as for `pack`.

    Raises:
        DataError: a broken row, an unknown label, or texts that are too long.
    """
    job = job_of(data, tokenizer, **settings)
    writer = ShardWriter(folder, split, job.shards)
    two_passes = needs_survey(job, data)
    weight, counts = max(data.weight, 1), Counts()
    total = 2 * weight if two_passes else weight
    kept: list[np.ndarray] | None = None

    def report(done: int) -> None:
        if progress is not None:
            progress(done, total)

    if two_passes:
        job, kept = _surveyed(job, data, workers, progress=report)

    def arguments(number: int, piece: Piece) -> tuple[Any, ...]:
        return job, number, piece, None if kept is None else kept[number]

    before = total - weight
    for block in _of_all(data, make_block, arguments, workers=workers, progress=lambda done: report(before + done)):
        writer.add(block.parts)
        counts.add(block.counts)
    return writer.close(**manifest_facts(job, counts))


def _of_all(
    data: Source,
    function: Callable[..., Any],
    arguments: Callable[[int, Piece], tuple[Any, ...]],
    *,
    workers: int,
    progress: Callable[[int], None],
) -> Iterator[Any]:
    """What a function returns for every piece; `progress` is told the weight of what is done."""
    weights: list[int] = []
    done = 0

    def calls() -> Iterator[tuple[Any, ...]]:
        for number, piece in enumerate(data.pieces()):
            weights.append(piece.weight)
            yield arguments(number, piece)

    for number, result in enumerate(of_pieces(data, function, calls(), workers=workers)):
        yield result
        done += weights[number]
        progress(done)


def job_of(data: Source, tokenizer: Any = None, **settings: Any) -> PackJob:
    """The job of these settings, which are those of `pack`.

    Raises:
        InputError: settings that do not fit.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    layout = given.pop("layout", "tokens")
    if given.get("labels") is not None and not data.labelled:
        raise InputError(f"{data.name} has no labels; leave labels out, or name the column")
    if layout != "text" and tokenizer is None:
        raise InputError(f"the layout {layout!r} needs a tokenizer")
    content = None if layout == "text" else tokenizer.to_str()
    return PackJob(data.name, layout, content, labels=given.pop("labels", None), **given)


def needs_survey(job: PackJob, data: Source) -> bool:
    """Whether the source must be looked at before it is packed: for its classes, or for duplicates."""
    return job.cleaning.duplicates or (data.labelled and job.labels is None and job.layout != "sequences")


def _surveyed(
    job: PackJob, data: Source, workers: int, *, progress: Callable[[int], None]
) -> tuple[PackJob, list[np.ndarray] | None]:
    """The job with its classes, and which texts of each piece stay."""
    labels: Counter[str] = Counter()
    hashes: list[np.ndarray] = []

    def arguments(number: int, piece: Piece) -> tuple[Any, ...]:
        return job, piece, job.cleaning.duplicates

    for found in _of_all(data, survey, arguments, workers=workers, progress=progress):
        labels += found.labels
        if found.hashes is not None:
            hashes.append(found.hashes)
    return with_classes(job, data, labels), first_of_each(hashes) if job.cleaning.duplicates else None


def with_classes(job: PackJob, data: Source, labels: Counter[str]) -> PackJob:
    """The job with the classes that a survey found, where it had none.

    Raises:
        DataError: fewer than two.
    """
    if job.labels is not None or not data.labelled or job.layout == "sequences":
        return job
    return dataclasses.replace(job, labels=distinct_labels(labels, data.name))


def manifest_facts(job: PackJob, counts: Counts) -> dict[str, Any]:
    """What the manifest says beyond records and shards."""
    facts: dict[str, Any] = {
        "texts": counts.texts, "fields": job.fields, "compression": job.compression,
        "cleaned": dict(counts.cleaned),
    }  # fmt: skip
    if job.labels is not None:
        facts |= {"labels": job.labels, "class_counts": counts.class_counts.tolist()}
    if job.layout == "text":
        return facts
    return facts | {
        "tokens": counts.tokens, "max_length": counts.max_length, "length_limit": job.max_length,
        "on_long": job.on_long, "too_long": counts.too_long, "longest": counts.longest,
    }  # fmt: skip


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
    fields = {"input_ids": Field("int64", (None,))}
    columns = {"input_ids": Column(data.tokens, data.lengths)}
    if ids is not None:
        fields["label"], columns["label"] = Field("int64"), Column(ids, np.ones(ids.size, np.int64))
    writer = ShardWriter(folder, split, shards)
    writer.add(encode_block(fields, columns, shards=shards, key=(seed, 0)))
    return writer.close(
        **facts, tokens=int(data.lengths.sum()), max_length=int(data.lengths.max()), too_long=data.too_long,
        longest=data.longest, fields=fields,
    )  # fmt: skip
