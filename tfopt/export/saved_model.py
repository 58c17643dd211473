"""SavedModels with named signatures, plain or compiled by XLA where they are loaded."""

from pathlib import Path
from typing import Any

import tensorflow as tf

from tfopt._keras import keras_api
from tfopt._keras.keras_io import Inputs, call
from tfopt.errors import InputError, VerificationError, WorkFailedError
from tfopt.export.artifact import Check
from tfopt.export.id_limits import id_limits
from tfopt.export.job import Job, Wanted, Written
from tfopt.export.samples import LENGTH
from tfopt.export.signatures import check_lengths
from tfopt.runtime.limits import write_limits

DEFAULT_SIGNATURE = "serving_default"


def lengths(model: Any, inputs: Inputs, wanted: Wanted, lengths: Any) -> tuple[tuple[int, ...], int]:
    """One signature per length for XLA, which compiles for every new shape; else one that takes any."""
    if wanted.cache != "float32":
        raise InputError(f"cache={wanted.cache!r} is for a TFLite file that generates")
    chosen = check_lengths(model, inputs, lengths) if wanted.jit_compile else ()
    return chosen, max(chosen, default=LENGTH)


def write(job: Job, path: Path) -> Written:
    """Writes the folder."""
    write_saved_model(job.model, path, job.inputs, lengths=job.lengths, jit_compile=job.wanted.jit_compile)
    write_limits(path, id_limits(job.model, job.inputs, min(job.lengths, default=LENGTH)))
    return Written()


def check(path: Path, name: str | None, jit_compile: bool) -> list[Check]:
    """That XLA compiles it if that was asked for.

    Raises:
        VerificationError: named "xla".
    """
    if must_compile(path) != jit_compile:
        raise VerificationError("xla", f"jit_compile={jit_compile} was asked for, the file says otherwise")
    return [Check("xla", str(jit_compile), str(jit_compile))]


def length_signature(length: int) -> str:
    """Name of the signature for inputs of exactly this length."""
    return f"serving_{length}"


def write_saved_model(
    model: Any,
    path: Path,
    inputs: Inputs,
    lengths: tuple[int, ...] = (),
    batch: int | None = None,
    jit_compile: bool = False,
) -> None:
    """Writes a SavedModel: `serving_default` for any length, and one signature per entry of `lengths`.

    Args:
        model: a Keras model of either generation.
        path: the folder to create.
        inputs: the model's inputs.
        lengths: fixed lengths. With a fixed `batch` there is no flexible signature beside them.
        batch: the only batch size, or None for any.
        jit_compile: mark the functions to be compiled by XLA wherever they are loaded.
    """
    module = tf.Module()
    # The variables are tracked one by one: of a Keras 3 model that is only an attribute, a converter
    # freezes none, and the file it writes computes NaN.
    module.model_variables = [keras_api.tf_variable(w.variable) for w in keras_api.weights(model)]
    signatures = {}
    if not lengths or batch is None:
        signatures[DEFAULT_SIGNATURE] = _function(model, inputs, batch, length=None, jit_compile=jit_compile)
    for length in lengths:
        signatures[length_signature(length)] = _function(
            model, inputs, batch, length=length, jit_compile=jit_compile
        )
    for name, function in signatures.items():
        setattr(module, name, function)
    try:
        tf.saved_model.save(module, str(path), signatures=signatures)
    except (tf.errors.OpError, AssertionError) as error:  # a full disk, a variable nobody tracks
        reason = str(error).strip().splitlines()[0]
        raise WorkFailedError(f"writing the SavedModel {path} failed: {reason}") from error


def _function(model: Any, inputs: Inputs, batch: int | None, length: int | None, jit_compile: bool) -> Any:
    @tf.function(input_signature=[inputs.with_sizes(batch, length)], jit_compile=jit_compile, autograph=False)
    def serve(named: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return call(model, inputs, named)

    return serve


def must_compile(path: Path) -> bool:
    """Whether the functions of a SavedModel are marked to be compiled by XLA."""
    from tensorflow.core.protobuf import saved_model_pb2

    proto = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    functions = proto.meta_graphs[0].graph_def.library.function
    return any(f.attr["_XlaMustCompile"].b for f in functions)
