"""TFLite files: float, float16 or integers, of encoders and of models that generate."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfopt._keras import extras
from tfopt._keras.keras_io import Inputs
from tfopt._keras.sizes import Size
from tfopt.decoding.weights import config_of, is_generative, is_seq2seq
from tfopt.errors import InputError
from tfopt.export.artifact import Check
from tfopt.export.convert import convert
from tfopt.export.decoder import apart_for, check_slots, compared_length, convert_decoder, finished
from tfopt.export.integers import write_decoder, write_integers
from tfopt.export.job import Job, Wanted, Written
from tfopt.export.samples import LENGTH
from tfopt.export.seq2seq import check_sources, convert_seq2seq
from tfopt.export.signatures import check_lengths
from tfopt.export.stored import check_stored
from tfopt.runtime.described import MEMBER, Described
from tfopt.tflite import flatbuffer as fb
from tfopt.tflite.owners import Owners


def lengths(model: Any, inputs: Inputs, wanted: Wanted, masks: Mapping[str, Any]) -> tuple[tuple[Size, ...], Size]:
    """Lengths of texts; of models that generate, of their caches."""
    if not is_generative(model):
        if wanted.cache != "float32":
            raise InputError(f"cache={wanted.cache!r} is for models that generate, and this one does not")
        chosen = check_lengths(model, inputs, wanted.lengths, masks=masks)
        return chosen, chosen[-1] if chosen else LENGTH
    if wanted.batch_size != 1:
        raise InputError(
            f"a TFLite file that generates takes one text at a time, got batch_size={wanted.batch_size}"
        )
    if is_seq2seq(model):
        if wanted.cache != "float32":
            raise InputError(f"cache={wanted.cache!r} is for causal language models, this one has an encoder")
        sources = check_sources(model, wanted.lengths)
        return sources, sources[-1]
    slots = check_slots(config_of(model).max_position_embeddings, wanted.lengths)
    return slots, compared_length(slots)


def write(job: Job, path: Path) -> Written:
    """Writes the file."""
    half = job.name == "float16"
    if is_generative(job.model):
        members = {**extras.of(job.model), **job.members}

        def converter(fold: bool, owners: Owners) -> bytes:
            if is_seq2seq(job.model):
                content = convert_seq2seq(job.model, job.slots, fold=fold, owners=owners)
            else:
                content = convert_decoder(
                    job.model, job.slots, fold=fold, narrow_cache=job.narrow_cache, owners=owners,
                    apart=apart_for(job),
                )  # fmt: skip
            return finished(content, members, float16=half)

        return write_decoder(job, path, converter)
    if job.config is not None:
        written = write_integers(job, path)
        path.write_bytes(_described(path.read_bytes(), job))
        return written
    content = convert(
        job.model, job.inputs, job.lengths, batch=job.wanted.batch_size, float16=half, flex=job.wanted.allow_flex
    )
    path.write_bytes(_described(content, job))
    return Written()


def _described(content: bytes, job: Job) -> bytes:
    """The file with what it says of its inputs, and of texts."""
    model = fb.read(content)
    described = Described(job.facts.rows, job.facts.masks).as_json().encode()
    for name, member in {MEMBER: described, **job.members}.items():
        fb.add_metadata(model, name, member)
    return fb.write(model)


def check(path: Path, name: str | None, jit_compile: bool) -> list[Check]:
    """As `stored.check_stored`."""
    return check_stored(path, name)
