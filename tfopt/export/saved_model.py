"""SavedModels with named signatures, plain or compiled by XLA where they are loaded."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfopt._keras import keras_api
from tfopt._keras.keras_io import Inputs, call
from tfopt._keras.lookups import tables
from tfopt._keras.sizes import Size, label
from tfopt.errors import InputError, VerificationError, WorkFailedError
from tfopt.export.artifact import Check
from tfopt.export.job import Job, Wanted, Written
from tfopt.export.signatures import check_lengths, tried_size
from tfopt.runtime.described import Described, write_described, write_members

DEFAULT_SIGNATURE = "serving_default"


def lengths(model: Any, inputs: Inputs, wanted: Wanted, masks: Mapping[str, Any]) -> tuple[tuple[Size, ...], Size]:
    """One signature per size for XLA, which compiles for every new shape; else one that takes any."""
    if wanted.cache != "float32":
        raise InputError(f"cache={wanted.cache!r} is for a TFLite file that generates")
    texts = next((name for name, spec in inputs.specs.items() if spec.dtype == tf.string), None)
    if wanted.jit_compile and texts is not None:
        raise InputError(f"XLA computes with numbers only, and input {texts!r} takes texts; leave jit_compile out")
    chosen = check_lengths(model, inputs, wanted.lengths, masks=masks) if wanted.jit_compile else ()
    return chosen, chosen[-1] if chosen else tried_size(model, inputs, wanted.lengths)


def write(job: Job, path: Path) -> Written:
    """Writes the folder."""
    write_saved_model(job.model, path, job.inputs, lengths=job.lengths, jit_compile=job.wanted.jit_compile)
    write_described(path, Described(job.facts.rows, job.facts.masks))
    write_members(path, job.members)
    return Written()


def check(path: Path, name: str | None, jit_compile: bool) -> list[Check]:
    """That XLA compiles it if that was asked for.

    Raises:
        VerificationError: named "xla".
    """
    if must_compile(path) != jit_compile:
        raise VerificationError("xla", f"jit_compile={jit_compile} was asked for, the file says otherwise")
    return [Check("xla", str(jit_compile), str(jit_compile))]


_SERVE = "serve"  # in the names of the functions that signatures call


def length_signature(size: Size) -> str:
    """Name of the signature for inputs of exactly this size."""
    return f"serving_{label(size)}"


def write_saved_model(
    model: Any,
    path: Path,
    inputs: Inputs,
    lengths: tuple[Size, ...] = (),
    batch: int | None = None,
    jit_compile: bool = False,
) -> None:
    """Writes a SavedModel: `serving_default` for any length, and one signature per entry of `lengths`.

    Args:
        model: a Keras model of either generation.
        path: the folder to create.
        inputs: the model's inputs.
        lengths: fixed sizes. With a fixed `batch` there is no flexible signature beside them.
        batch: the only batch size, or None for any.
        jit_compile: mark the functions to be compiled by XLA wherever they are loaded.
    """
    module = tf.Module()
    # The variables are tracked one by one: of a Keras 3 model that is only an attribute, a converter
    # freezes none, and the file it writes computes NaN.
    module.model_variables = [keras_api.tf_variable(w.variable) for w in keras_api.weights(model)]
    module.model_tables = tables(model)
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


def _function(model: Any, inputs: Inputs, batch: int | None, length: Size | None, jit_compile: bool) -> Any:
    @tf.function(input_signature=[inputs.with_sizes(batch, length)], jit_compile=jit_compile, autograph=False)
    def serve(named: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return call(model, inputs, named)

    assert serve.__name__ == _SERVE
    return serve


def must_compile(path: Path) -> bool:
    """Whether the functions of a SavedModel's signatures are marked to be compiled by XLA.

    Others inside may be, whoever asks: tf_keras compiles convolutions in groups.
    """
    from tensorflow.core.protobuf import saved_model_pb2

    proto = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    functions = proto.meta_graphs[0].graph_def.library.function
    served = [f for f in functions if f.signature.name.startswith(f"__inference_{_SERVE}_")]
    return any(f.attr["_XlaMustCompile"].b for f in served)
