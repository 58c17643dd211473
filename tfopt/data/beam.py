"""The pack job as a pipeline of Apache Beam, for more than one machine: https://beam.apache.org.

Blocks are made wherever the runner puts them and written beside each other; then those of a shard are joined. The
shards are those that `data.pack` writes, byte for byte.
"""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfopt._base.files import remove, replacing, write_bytes
from tfopt.data.clean import first_of_each
from tfopt.data.job import Counts, PackJob, make_block, survey
from tfopt.data.pack import job_of, manifest_facts, needs_survey, with_classes
from tfopt.data.readers.base import Piece, Source, needs
from tfopt.data.records.manifest import SPLIT, Manifest
from tfopt.data.records.write import ShardWriter, new_pack
from tfopt.data.tokenizers import save_tokenizer

_BLOCKS = "blocks"


def beam_pack(
    data: Source, tokenizer: Any = None, *, out: str | Path, options: Sequence[str] = (), **settings: Any
) -> Manifest:
    """Writes the folder `out` as `data.pack.pack` does, by a pipeline of Apache Beam.

    Args:
        data, tokenizer: as for `pack`.
        out: folder to create, at a path that all workers see, as the source is.
        options: of the pipeline, such as `--runner=DirectRunner`.
        **settings: as for `pack`: max_length, labels, shards, on_long, seed, layout, compression, cleaning.

    Raises:
        InputError: Apache Beam is missing, or a setting that does not fit.
        DataError: a broken row, an unknown label, or texts that are too long.
    """
    try:
        import apache_beam  # noqa: F401
    except ImportError as error:
        raise needs("beam", error) from error
    job = job_of(data, tokenizer, **settings)
    pieces = list(enumerate(data.pieces()))
    with new_pack(out) as folder:
        blocks = folder / _BLOCKS
        blocks.mkdir()
        kept = None
        if needs_survey(job, data):
            _run(options, [(job, number, piece, str(blocks)) for number, piece in pieces], _survey_piece)
            job, kept = _read_survey(job, data, blocks, pieces=len(pieces))
        calls = [(job, n, piece, None if kept is None else kept[n], str(blocks)) for n, piece in pieces]
        _run(options, calls, _write_block)
        _run(options, [(shard, str(blocks)) for shard in range(job.shards)], _join_shard)
        manifest = _finish(job, folder, blocks)
        remove(blocks)
        if tokenizer is not None:
            save_tokenizer(tokenizer, folder / "tokenizer.json")
    return manifest


def _run(options: Sequence[str], calls: list[Any], work: Any) -> None:
    """One pipeline that makes these calls."""
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
        pipeline | beam.Create(calls) | beam.Reshuffle() | beam.MapTuple(work)


def _survey_piece(job: PackJob, number: int, piece: Piece, blocks: str) -> None:
    found = survey(job, piece, job.cleaning.duplicates)
    write_bytes(Path(blocks, f"{number:08d}.survey"), json.dumps(found.labels).encode())
    if found.hashes is not None:
        write_bytes(Path(blocks, f"{number:08d}.hashes"), found.hashes.tobytes())


def _read_survey(
    job: PackJob, data: Source, blocks: Path, *, pieces: int
) -> tuple[PackJob, list[np.ndarray] | None]:
    labels: Counter[str] = Counter()
    hashes = []
    for number in range(pieces):
        labels.update(json.loads((blocks / f"{number:08d}.survey").read_bytes()))
        if job.cleaning.duplicates:
            hashes.append(np.frombuffer((blocks / f"{number:08d}.hashes").read_bytes(), np.uint64))
    return with_classes(job, data, labels), first_of_each(hashes) if job.cleaning.duplicates else None


def _write_block(job: PackJob, number: int, piece: Piece, kept: np.ndarray | None, blocks: str) -> None:
    block = make_block(job, number, piece, kept=kept)
    records = {}
    for shard, count, content in block.parts:
        write_bytes(Path(blocks, f"{shard:05d}-{number:08d}.part"), content)
        records[shard] = count
    write_bytes(Path(blocks, f"{number:08d}.counts"), json.dumps([records, block.counts.to_dict()]).encode())


def _join_shard(shard: int, blocks: str) -> None:
    with replacing(Path(blocks, f"{shard:05d}.shard")) as path, path.open("wb") as out:
        for part in sorted(Path(blocks).glob(f"{shard:05d}-*.part")):
            with part.open("rb") as read:
                shutil.copyfileobj(read, out, 1 << 20)


def _finish(job: PackJob, folder: Path, blocks: Path) -> Manifest:
    writer, counts = ShardWriter(folder, SPLIT, job.shards), Counts()
    records: Counter[int] = Counter()
    for path in sorted(blocks.glob("*.counts")):
        of_shards, facts = json.loads(path.read_bytes())
        records.update({int(shard): count for shard, count in of_shards.items()})
        counts.add(Counts.from_dict(facts))
    for shard in range(job.shards):
        writer.take(shard, records[shard], blocks / f"{shard:05d}.shard")
    return writer.close(**manifest_facts(job, counts))
