"""`export`: one call from a Keras model to a verified artifact."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt import keras_api
from tfopt.decoding.weights import is_causal_lm
from tfopt.errors import InputError
from tfopt.export.artifact import Artifact, Check, LayerBits
from tfopt.export.decoder import check_slots, compared_length, convert_decoder
from tfopt.export.quantization import as_written, make_record, resolve, smoother, write_quantized
from tfopt.export.recurrent import refuse_stateful
from tfopt.export.saved_model import write_saved_model
from tfopt.export.signatures import MASK, check_lengths
from tfopt.export.tflite import convert
from tfopt.export.verify import check_contents, check_outputs, largest_error
from tfopt.files import replacing
from tfopt.keras_io import Inputs, call, check_samples, inputs_of
from tfopt.quantization.config import QuantizeConfig

FORMATS = ("saved_model", "tflite")
_RANDOM_ROWS, _RANDOM_LENGTH = 8, 8


def export(
    model: Any,
    path: str | Path,
    *,
    format: str | None = None,
    quantization: str | QuantizeConfig | None = None,
    jit_compile: bool = False,
    representative: dict[str, np.ndarray] | None = None,
    lengths: Sequence[int] | None = None,
    batch_size: int = 1,
    input_signature: Any = None,
    cache: str = "float32",
) -> Artifact:
    """Writes the model for another runtime and verifies what was written.

    The artifact appears at `path` only after every check has passed; whatever was there before stays
    until then.

    Args:
        model: a built model of either Keras generation; it is not changed.
        path: a `.tflite` file, or the folder of a SavedModel.
        format: "saved_model" or "tflite"; by default what the path's suffix says.
        quantization: for TFLite, None (float32), "float16", a name in `quantization.NAMED` such as
            "dynamic_int8", "dynamic_int4_block32", "weight_only_int4", "int8" (integers from input to output)
            or "int16", a `QuantizeConfig`, or "trained": what quantization-aware training simulated. Grids that
            were trained are written as they are; other models are rounded now.
        jit_compile: for SavedModels, compile with XLA wherever the artifact is loaded.
        representative: inputs by name, for the ranges of static quantization, the comparison with the Keras
            model and of the classes that both choose; random ones if None, which show a broken conversion
            but say nothing about ranges and classes.
        lengths: for models that take sequences of any length, the lengths to export; shorter inputs are
            padded when the artifact is used. By default 32, 64 and 128 where the model has an
            "attention_mask". A SavedModel without `jit_compile` takes any length and ignores this. For TFLite
            files of causal language models, the lengths of the cache: a text begins in the shortest and moves up
            as it grows; by default 128, 256, 512 and so on up to the model's context, at most 4096.
        batch_size: for TFLite, the rows per call.
        input_signature: for subclassed models, ``{name: tf.TensorSpec}`` or one TensorSpec.
        cache: for TFLite files of causal language models, "float32" or "int8" keys and values: a quarter of the
            memory.

    Returns:
        The artifact with every check that it passed.

    Raises:
        InputError: a bad argument.
        WorkFailedError: the converter gave up.
        VerificationError: a check failed; it is named.
    """
    keras_api.check_model(model)
    path = Path(path).resolve()
    format = format or _format_of(path)
    _check_arguments(path, format, quantization, jit_compile=jit_compile, batch_size=batch_size)
    refuse_stateful(model)
    name, config = resolve(quantization, model)
    inputs = inputs_of(model, input_signature)
    generates, narrow = format == "tflite" and is_causal_lm(model), cache == "int8"
    if cache not in ("float32", "int8") or (narrow and not generates):
        raise InputError(f"cache must be 'float32', or 'int8' for a TFLite file that generates, got {cache!r}")
    if generates and batch_size != 1:
        raise InputError(f"a TFLite file that generates takes one text at a time, got batch_size={batch_size}")
    flexible = format == "saved_model" and not jit_compile
    chosen = check_slots(model, lengths) if generates else () if flexible else check_lengths(model, inputs, lengths)
    longest = compared_length(chosen) if generates else max(chosen, default=_RANDOM_LENGTH)
    samples = _samples(model, inputs, representative, longest=longest)
    reference = _outputs(model, inputs, samples)
    checks: list[Check] = []
    layers: tuple[LayerBits, ...] = ()
    with replacing(path) as temporary:
        if config is not None:
            given = None if representative is None else samples
            with smoother(model, config, inputs, representative=given) as smoothing:
                record, checks = make_record(model, config, inputs, representative=given)
                written = write_quantized(
                    model,
                    temporary,
                    inputs,
                    lengths=chosen,
                    batch=batch_size,
                    record=record,
                    representative=given,
                    narrow_cache=narrow,
                )
                with as_written(model, written):
                    expected = _outputs(model, inputs, samples)
            checks, layers = [*smoothing, *checks, *written.checks], written.layers
        else:
            expected = reference
            if generates:
                temporary.write_bytes(convert_decoder(model, chosen, name == "float16", narrow_cache=narrow))
            elif format == "tflite":
                temporary.write_bytes(convert(model, inputs, chosen, batch=batch_size, float16=name == "float16"))
            else:
                write_saved_model(model, temporary, inputs, lengths=chosen, jit_compile=jit_compile)
        checks += check_contents(temporary, format=format, quantization=name, jit_compile=jit_compile)
        outputs, more, agreement = check_outputs(
            temporary, samples, reference=expected, quantization="int8 cache" if narrow else name,
            compare_classes=representative is not None, static=config is not None and config.is_static,
        )  # fmt: skip
    error = largest_error(outputs, reference)
    return Artifact(
        path,
        format,
        name,
        jit_compile=jit_compile,
        lengths=chosen,
        max_abs_error=error,
        agreement=agreement,
        checks=(*checks, *more),
        layers=layers,
    )


def _format_of(path: Path) -> str:
    return "tflite" if path.suffix == ".tflite" else "saved_model"


def _outputs(model: Any, inputs: Inputs, samples: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in call(model, inputs, samples).items()}


def _check_arguments(path: Path, format: str, quantization: Any, jit_compile: bool, batch_size: int) -> None:
    if format not in FORMATS:
        raise InputError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    if format == "saved_model" and quantization is not None:
        raise InputError(f"quantization={quantization!r} needs format='tflite'; a SavedModel keeps float weights")
    if format == "tflite" and jit_compile:
        raise InputError("jit_compile needs format='saved_model'; TFLite files are not compiled by XLA")
    if (path.suffix == ".tflite") != (format == "tflite"):
        wanted = "end in .tflite" if format == "tflite" else "be a folder, without .tflite"
        raise InputError(f"the path of format {format!r} must {wanted}, got {path.name!r}")
    if batch_size < 1:
        raise InputError(f"batch_size must be 1 or more, got {batch_size}")
    if path.is_file() != (format == "tflite") and path.exists():
        kind = "file" if path.is_file() else "folder"
        raise InputError(f"{path} is a {kind}, which format {format!r} cannot replace; choose another path")
    if path.is_dir() and any(path.iterdir()) and not (path / "saved_model.pb").exists():
        raise InputError(f"{path} is not empty and holds no SavedModel; choose another folder")


def _samples(model: Any, inputs: Inputs, given: dict[str, np.ndarray] | None, longest: int) -> dict[str, Any]:
    """The samples to compare with, no longer than what is exported."""
    if given is not None:
        samples = check_samples(inputs, given)
        if inputs.has_length and not any(
            None not in tuple(s.shape)[1:] and len(s.shape) > 1 for s in inputs.specs.values()
        ):
            samples = {name: value[:, :longest] for name, value in samples.items()}
        return samples
    rng = np.random.default_rng(0)
    shapes = inputs.with_sizes(_RANDOM_ROWS, longest)
    vocabulary = _usable_ids(model, inputs, shapes)
    samples = {}
    for name, spec in shapes.items():
        shape = tuple(spec.shape)
        if name == MASK:
            samples[name] = np.ones(shape)
        elif spec.dtype.is_integer:
            samples[name] = rng.integers(0, vocabulary, shape)
        else:
            samples[name] = rng.standard_normal(shape)
        samples[name] = samples[name].astype(spec.dtype.as_numpy_dtype)
    return samples


def _usable_ids(model: Any, inputs: Inputs, shapes: dict[str, tf.TensorSpec]) -> int:
    """The most ids that every integer input takes: the rows of the largest lookup table that none exceeds."""
    tables = [w.variable for w in keras_api.weights(model) if w.name == "embeddings"]
    for rows in sorted({int(t.shape[0]) for t in tables}, reverse=True):
        probe = {
            n: tf.ones(s.shape, s.dtype) * (1 if n == MASK or not s.dtype.is_integer else rows - 1)
            for n, s in shapes.items()
        }
        try:
            call(model, inputs, probe)
        except tf.errors.InvalidArgumentError:
            continue
        return rows
    return 2
