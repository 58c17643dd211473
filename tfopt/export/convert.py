"""Converts to TFLite through a SavedModel: float32 or float16."""

import re
import tempfile
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfopt._base.children import run_in_child
from tfopt._keras.keras_io import Inputs
from tfopt._keras.sizes import Size
from tfopt.errors import WorkFailedError
from tfopt.export.layer_norm import few_passes
from tfopt.export.lowering import lower
from tfopt.export.recurrent import unfused
from tfopt.export.saved_model import DEFAULT_SIGNATURE, length_signature, write_saved_model
from tfopt.export.scopes import scopes
from tfopt.tflite.lookups import widen_after_lookup
from tfopt.tflite.owners import Owners


def signature_of(size: Size | None) -> str:
    """Name of the signature for a size, or for a model of one shape."""
    return DEFAULT_SIGNATURE if size is None else length_signature(size)


def convert(
    model: Any,
    inputs: Inputs,
    lengths: tuple[Size, ...],
    batch: int,
    float16: bool = False,
    owners: Owners | None = None,
    unrolled: bool = False,
    flex: bool = False,
) -> bytes:
    """A float file with one signature per size, or `serving_default` if there is one shape only.

    Args:
        model: a Keras model of either generation.
        inputs: the model's inputs.
        lengths: fixed sizes; empty if all axes are known.
        batch: rows per call.
        float16: store weights in float16.
        owners: scopes in which layers are traced.
        unrolled: trace recurrent layers step after step: nothing static is inside a loop of the format.
        flex: keep operators that the format lacks, for TensorFlow's Flex delegate.

    Raises:
        WorkFailedError: the converter gave up; its reason is kept.
    """
    with tempfile.TemporaryDirectory(prefix="tfopt-") as folder:
        saved = Path(folder, "model")
        with few_passes(model), unfused(model, unrolled), scopes(model, owners or Owners.of(())):
            write_saved_model(model, saved, inputs, lengths=lengths, batch=batch)
        lower(saved)
        return convert_saved_model(saved, [signature_of(n) for n in lengths or (None,)], float16, flex=flex)


def convert_saved_model(saved: str | Path, keys: list[str], float16: bool = False, flex: bool = False) -> bytes:
    """A float file from a SavedModel's signatures.

    Raises:
        WorkFailedError: the converter gave up; its reason is kept.
    """
    content: bytes = run_in_child(_converted, str(saved), keys, float16, flex)
    return widen_after_lookup(content) if float16 else content


def _converted(saved: str, keys: list[str], float16: bool, flex: bool) -> bytes:
    """The child's side: infinities crash the converter, and it collects the garbage of the whole process."""
    converter = tf.lite.TFLiteConverter.from_saved_model(saved, signature_keys=keys)
    if flex:
        sets = tf.lite.OpsSet
        converter.target_spec.supported_ops = [sets.TFLITE_BUILTINS, sets.SELECT_TF_OPS]
    if float16:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.float16]
    try:
        content = converter.convert()
    except (tf.errors.OpError, RuntimeError, ValueError) as error:
        raise WorkFailedError(f"TFLite conversion failed: {_reason(error)}") from error
    except Exception as error:
        if type(error).__name__ != "ConverterError":  # defined in a private module of TensorFlow
            raise
        raise WorkFailedError(f"TFLite conversion failed: {_reason(error)}") from error
    return bytes(content)


def _reason(error: Exception) -> str:
    lacking = re.search(r"(?:TF Select|Flex) ops: (.*)", str(error))
    if lacking:
        names = lacking[1].strip().replace("Flex", "")
        return (
            f"the format has no operator {names}; build the model without it, export a SavedModel, or give "
            "allow_flex=True for a runtime with TensorFlow's Flex delegate"
        )
    lines = [line.strip() for line in str(error).splitlines() if "error:" in line] or str(error).splitlines()
    return lines[0] if lines else type(error).__name__
