"""Converts to TFLite through a SavedModel: float32, float16, or dynamic int8."""

import tempfile
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfopt.errors import WorkFailedError
from tfopt.export.layer_norm import few_passes
from tfopt.export.lookups import widen_after_lookup
from tfopt.export.saved_model import DEFAULT_SIGNATURE, length_signature, write_saved_model
from tfopt.keras_io import Inputs


def write_tflite(
    model: Any, path: Path, inputs: Inputs, lengths: tuple[int, ...], batch: int, quantization: str | None
) -> None:
    """Writes a file with one signature per length, or `serving_default` if there is one shape only.

    Args:
        model: a Keras model of either generation.
        path: the file to write.
        inputs: the model's inputs.
        lengths: fixed lengths; empty if all axes are known.
        batch: rows per call.
        quantization: None, "float16" (weights) or "dynamic_int8" (weights int8 per channel, lookup
            tables int8 per table, activations quantized per row while running).

    Raises:
        WorkFailedError: the converter gave up; its reason is kept.
    """
    with tempfile.TemporaryDirectory(prefix="tfopt-") as folder:
        saved = Path(folder, "model")
        with few_passes(model):
            write_saved_model(model, saved, inputs, lengths, batch)
        keys = [length_signature(n) for n in lengths] or [DEFAULT_SIGNATURE]
        converter = tf.lite.TFLiteConverter.from_saved_model(str(saved), signature_keys=keys)
        if quantization is not None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if quantization == "float16":
            converter.target_spec.supported_types = [tf.float16]
        try:
            content = converter.convert()
        except (tf.errors.OpError, RuntimeError, ValueError) as error:
            raise WorkFailedError(f"TFLite conversion failed: {_reason(error)}") from error
        except Exception as error:
            if type(error).__name__ != "ConverterError":  # defined in a private module of TensorFlow
                raise
            raise WorkFailedError(f"TFLite conversion failed: {_reason(error)}") from error
    path.write_bytes(content if quantization is None else widen_after_lookup(content))


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if "error:" in line] or str(error).splitlines()
    return lines[0] if lines else type(error).__name__
