"""`export_streamed`: from a checkpoint on disk to a verified file that generates, in little memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfopt._base import children
from tfopt._base.files import existing, replacing
from tfopt._base.formats import format_for
from tfopt.errors import InputError, VerificationError, WorkFailedError
from tfopt.export.artifact import Artifact
from tfopt.export.decoder import check_slots, compared_length
from tfopt.export.said import IDS, MASK, said_by_file
from tfopt.export.stored import check_stored
from tfopt.export.streamed import KINDS, reference, write_streamed
from tfopt.export.verify import check_accepted, check_outputs, largest_error, limits_for
from tfopt.models.streamed import streamed
from tfopt.quantization.config import NAMED
from tfopt.tflite.layer_bits import LayerBits

_ROWS = 2  # of the texts that a file is compared on


def export_streamed(
    source: str | Path,
    path: str | Path,
    *,
    quantization: str = "dynamic_int8",
    lengths: Sequence[int] | None = None,
    representative: np.ndarray | None = None,
    accept: Sequence[str] = (),
) -> Artifact:
    """Writes a TFLite file that generates straight from a checkpoint, one weight at a time.

    Neither a Keras model nor the float weights are ever whole in memory, and the file may be larger than 2 GB. It
    is verified as `export` does it: in a child process, against the weights in float, which are read once more,
    layer after layer. Weights are rounded to nearest; GPTQ, AWQ and smoothing need `export`.

    Args:
        source: a Hugging Face folder or a `.gguf` file of a decoder.
        path: the `.tflite` file; it appears only after every check has passed.
        quantization: "dynamic_int8", "weight_only_int8", or "dynamic_int4" and its blocks of 32, 64 and 128, whose
            table has 8 bits.
        lengths: of the cache, as for `export`.
        representative: token ids of texts (texts, tokens) that the file is compared on; by default texts that the
            file says itself.
        accept: names of checks that may fail, out of `numerics.agreement.MEASURES`.

    Returns:
        The artifact with its checks: passed, or accepted.

    Raises:
        MissingFileError: no such checkpoint.
        ModelFileError: it is damaged, or of an unknown architecture.
        InputError: a bad argument, or a model that is no decoder.
        VerificationError: a check failed; it is named.
    """
    source, path = existing(source, "model"), Path(path).resolve()
    if format_for(path).name != "tflite":
        raise InputError(f"weights are streamed into a .tflite file, got {path.name}")
    if quantization not in KINDS:
        raise InputError(f"quantization must be one of {', '.join(KINDS)}, got {quantization!r}")
    check_accepted(accept)
    children.warm_up()
    with streamed(source) as weights, replacing(path) as temporary:
        slots = check_slots(weights.config.max_position_embeddings, lengths)
        texts = None if representative is None else _checked(representative, weights.config.vocab_size, slots[-1])
        write_streamed(weights, temporary, KINDS[quantization], slots=slots)
        checks = check_stored(temporary, quantization)
        ids = texts if texts is not None else _said(temporary, compared_length(slots))
        logits = {"logits": reference(weights, ids)}
        found = check_outputs(
            temporary, {IDS: ids, MASK: np.ones_like(ids)}, reference=logits, given=texts is not None, text=ids,
            limits=limits_for(quantization, NAMED[quantization]), accept=accept,
        )  # fmt: skip
        matrices = [name for name, shape in weights.shapes.items() if len(shape) == 2]
    return Artifact(
        path, "tflite", quantization, jit_compile=False, lengths=slots, agreement=found.agreement,
        max_abs_error=largest_error(found.outputs, logits), checks=(*checks, *found.checks),
        layers=tuple(_bits(name, quantization) for name in matrices),
    )  # fmt: skip


def _checked(ids: Any, vocab: int, most: int) -> np.ndarray:
    ids = np.asarray(ids)
    if ids.ndim != 2 or not ids.size or ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= vocab:
        raise InputError(f"representative must be token ids (texts, tokens) in [0, {vocab}), got {ids.shape}")
    return np.ascontiguousarray(ids[:, :most], np.int32)


def _said(path: Path, length: int) -> np.ndarray:
    """Texts of the file itself, in a child: the file is not yet known to be one that runs."""
    try:
        return np.asarray(children.run_in_child(said_by_file, str(path), _ROWS, length), np.int32)
    except (children.ChildFailedError, WorkFailedError) as error:
        raise VerificationError("loads", str(error)) from error


def _bits(name: str, quantization: str) -> LayerBits:
    kind = KINDS[quantization]
    if name.endswith("/embeddings"):
        return LayerBits(name, 8, "channel", reason="")
    return LayerBits(name, kind.bits, f"block {kind.block}" if kind.block else "channel", reason="")
