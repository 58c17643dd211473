"""`export`: one call from a Keras model to a verified artifact."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfopt._base import children
from tfopt._base.files import replacing
from tfopt._base.formats import WRITTEN, Format, format_for, format_named
from tfopt._base.members import FACTS
from tfopt._base.spread import Workers
from tfopt._keras import keras_api
from tfopt._keras.copying import copy_of
from tfopt._keras.input_facts import facts_of
from tfopt._keras.keras_io import inputs_of
from tfopt._keras.precision import computes_narrow, float32_copy, stores_narrow, widened
from tfopt.data.text_facts import TextFacts
from tfopt.decoding.weights import is_causal_lm, is_seq2seq
from tfopt.errors import InputError, WorkFailedError
from tfopt.export.artifact import Artifact, Check
from tfopt.export.integers import resolve
from tfopt.export.job import Job, Values, Wanted, outputs_of
from tfopt.export.lookups import check_cut, ids_for, without_lookups
from tfopt.export.recurrent import refuse_stateful
from tfopt.export.said import IDS, MASK, TARGET, answers_of, said_by, text_of
from tfopt.export.samples import make_samples
from tfopt.export.signatures import tried_size
from tfopt.export.texts import members_for_texts
from tfopt.export.verify import Verified, check_accepted, check_outputs, largest_error, limits_for
from tfopt.models.keras_hub import NAMES, as_decoder, is_known, is_task
from tfopt.models.rotated import rotated
from tfopt.quantization.config import QuantizeConfig
from tfopt.quantization.record import record_of
from tfopt.quantization.simulation import simulation_of
from tfopt.tflite.file import flex_operators

_log = logging.getLogger(__name__)
_FOR_GPTQ = 32  # texts
_TURNED = 1e-3  # of the largest output; rotation is exact but for what float32 rounds


def export(
    model: Any,
    path: str | Path,
    *,
    format: str | None = None,
    quantization: str | QuantizeConfig | None = None,
    jit_compile: bool = False,
    representative: dict[str, np.ndarray] | None = None,
    lengths: Sequence[int | Mapping[str, Any]] | None = None,
    batch_size: int = 1,
    input_signature: Any = None,
    cache: str = "float32",
    in_place: bool = False,
    accept: Sequence[str] = (),
    tokenizer: str | Path | None = None,
    labels: Sequence[str] | None = None,
    allow_flex: bool = False,
    workers: Workers | int = 1,
) -> Artifact:
    """Writes the model for another runtime and verifies what was written.

    The artifact appears at `path` only after every check has passed; what was there before stays until then.

    Args:
        model: a built model of either Keras generation; it is not changed, and other threads may use it meanwhile.
        path: a `.tflite` file, the folder of a SavedModel, or for models that generate a `.litertlm` file.
        format: "saved_model", "tflite" or "litertlm"; by default what the path's suffix says.
        quantization: for TFLite, None (float32), "float16", a name in `quantization.NAMED` such as "dynamic_int8",
            "dynamic_int4_block32", "int8" (integers from input to output) or "int16", a `QuantizeConfig`, or
            "trained": what quantization-aware training simulated, written as it is; others are rounded now.
        jit_compile: for SavedModels, compile with XLA wherever the artifact is loaded.
        representative: inputs by name, for the ranges of static quantization, the comparison with the Keras
            model and of the classes that both choose; if None, ones drawn at random from what each input takes,
            which show a broken conversion but say nothing about ranges and classes; of causal language models,
            texts that they say themselves.
        lengths: for models with axes of any size, the sizes to export: numbers for all of them, or mappings from
            inputs to sizes such as ``{"image": (224, 160)}``. By default 32, 64 and 128 where a mask tells padding;
            shorter inputs are then padded when the artifact is used. A SavedModel without `jit_compile` takes
            any size and ignores this. For TFLite files of causal language models, the lengths of the cache: a text
            begins in the shortest; by default 128, 256, 512 and so on up to the model's context, at most 4096.
        batch_size: for TFLite, the rows per call.
        input_signature: for subclassed models, ``{name: tf.TensorSpec}`` or one TensorSpec.
        cache: for TFLite files of causal language models, "float32", or "int8" in a quarter of the bytes.
        in_place: work on the model itself instead of a copy, to save memory; nothing else may use it meanwhile.
            Models without a configuration to copy, such as subclassed ones, always are; the log says it.
        accept: names of checks that may fail, out of `numerics.agreement.ACCEPTABLE`; which did is said.
        tokenizer: a `tokenizer.json`, or its folder, for artifacts that take texts; by default the model's.
        labels: names of the classes in the order of their numbers, for answers; by default the model's.
        allow_flex: for float TFLite files, keep operators of TensorFlow's Flex delegate; nothing here runs them.
        workers: who runs representative data for static ranges; a number is one of processes.

    Returns:
        The artifact with its checks: passed, or accepted.

    Raises:
        InputError: a bad argument.
        WorkFailedError: the converter gave up.
        VerificationError: a check failed; it is named.

    >>> import tempfile, tf_keras, tfopt
    >>> model = tf_keras.Sequential([tf_keras.layers.Input((4,)), tf_keras.layers.Dense(8)])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     artifact = tfopt.export(model, f"{folder}/model.tflite")
    >>> artifact.format, [check.name for check in artifact.checks][:5]
    ('tflite', ['dtypes', 'table_lookup', 'state', 'loads', 'max_abs_error'])
    """
    keras_api.check_model(model)
    path = Path(path).resolve()
    kind = format_for(path) if format is None else format_named(format)
    if kind.fixed_lengths and is_task(model):
        model, representative = _to_generate(model, representative)
    wanted = Wanted(
        quantization, jit_compile=jit_compile, lengths=lengths, batch_size=batch_size, cache=cache,
        accept=tuple(accept), allow_flex=allow_flex, workers=Workers.of(workers),
    )  # fmt: skip
    _check_wanted(kind, wanted, path)
    _check_can_be_exported(model)
    cut = without_lookups(model) if kind.fixed_lengths else None
    if cut is not None:
        artifact = export(
            cut.model, path, format=format, quantization=quantization, representative=ids_for(cut, representative),
            lengths=lengths, batch_size=batch_size, accept=accept, tokenizer=tokenizer, labels=labels,
            allow_flex=allow_flex, workers=workers,
        )  # fmt: skip
        return dataclasses.replace(artifact, checks=(check_cut(model, cut), *artifact.checks))
    members = members_for_texts(model, tokenizer, labels)
    return _written(
        model, path, kind, wanted=wanted, data=representative, signature=input_signature, members=members,
        in_place=in_place,
    )  # fmt: skip


def _to_generate(model: Any, representative: Any) -> tuple[Any, Any]:
    """A causal model of KerasHub as one whose file generates, or as it is where that cannot be."""
    if is_known(model) and record_of(model) is None:
        if isinstance(representative, Mapping):
            representative = {NAMES.get(str(name), name): value for name, value in representative.items()}
        return as_decoder(model), representative
    _log.warning(
        "the file of %r computes what the model does, and does not generate: %s", model.name,
        "grids were trained for its own layers" if is_known(model) else "the decoder does not know its family",
    )  # fmt: skip
    return model, representative


def _written(
    model: Any, path: Path, kind: Format, *, wanted: Wanted, data: Any, signature: Any,
    members: Mapping[str, bytes], in_place: bool,
) -> Artifact:  # fmt: skip
    """Writes, checks and compares; the file appears only if all is right."""
    children.warm_up()
    whole = _copied(model, in_place)
    with widened(whole), replacing(path) as temporary:
        job = _plan(whole, kind, wanted, data=data, signature=signature, members=members)
        reference = outputs_of(dataclasses.replace(job, model=whole if computes_narrow(model) else model))
        job, rotation = _rotated(job, reference)
        written = kind.writer_module().write(job, temporary)
        checks = [*rotation, *written.checks, *kind.writer_module().check(temporary, job.name, wanted.jit_compile)]
        flex = flex_operators(temporary) if wanted.allow_flex else ()
        found = _not_run(flex) if flex else _compared(job, temporary, reference, expected=written.expected)
    sizes = tuple(n if isinstance(n, int) else n.as_dict() for n in job.lengths)
    return Artifact(
        path, kind.name, job.name, jit_compile=wanted.jit_compile, lengths=sizes,
        max_abs_error=float("nan") if flex else largest_error(found.outputs, reference), agreement=found.agreement,
        checks=(*checks, *found.checks), layers=written.layers,
    )  # fmt: skip


def _rotated(job: Job, reference: Values) -> tuple[Job, list[Check]]:
    """The export of the model with its channels turned, if the configuration says so."""
    if job.config is None or not job.config.rotate:
        return job, []
    if not is_causal_lm(job.model):
        raise InputError(f"rotate=True is for causal language models; {job.model.name!r} is none")
    job = dataclasses.replace(job, model=rotated(job.model))
    off = max(
        float(np.abs(found - reference[name]).max() / np.abs(reference[name]).max())
        for name, found in outputs_of(job).items()
    )
    if not off < _TURNED:
        raise WorkFailedError(f"rotation changed outputs by {off:.3g} of the largest; export without it")
    return job, [Check("rotation", f"{off:.1e} of the largest output", f"below {_TURNED:g}")]


def _not_run(operators: Sequence[str]) -> Verified:
    """Of a file that no interpreter here can run."""
    _log.warning("not run, and so not verified: %s need TensorFlow's Flex delegate", ", ".join(operators))
    check = Check("flex", f"not run: {', '.join(operators)}", "operators of the format", accepted=True)
    return Verified({}, (check,), agreement=None)


def _compared(job: Job, path: Path, reference: Values, expected: Values | None) -> Verified:
    kind = "int8 cache" if job.narrow_cache and job.config is None else job.name
    masks = () if is_seq2seq(job.model) else job.facts.masks  # whose outputs stand behind another text
    return check_outputs(
        path, job.samples, reference=reference, expected=expected, limits=limits_for(kind, job.config),
        given=job.given is not None, accept=job.wanted.accept,
        static=job.config is not None and job.config.is_static,
        text=text_of(job.model, job.samples), mask=next((job.samples[name] for name in masks), None),
        labels_tokens=_labels_tokens(job),
    )  # fmt: skip


def _labels_tokens(job: Job) -> bool:
    return (
        FACTS in job.members and TextFacts.from_json(job.members[FACTS], "the model").task == "token_classification"
    )


def _plan(model: Any, kind: Format, wanted: Wanted, data: Any, signature: Any, members: Mapping[str, bytes]) -> Job:
    """Everything that is decided before anything is written."""
    name, config = resolve(wanted.quantization, model)
    inputs = inputs_of(model, signature)
    facts = facts_of(model, inputs, tried_size(model, inputs, wanted.lengths))
    chosen, longest = kind.writer_module().lengths(model, inputs, wanted, masks=facts.masks)
    # A file that generates says nothing where the padding is.
    padded = not is_causal_lm(model)
    samples = make_samples(inputs, facts, data, longest=longest, padded=padded)
    calibration = None if data is None else samples
    if data is None and is_seq2seq(model):
        for row, size in enumerate(chosen[: len(samples[MASK])]):  # every length has signatures of its own
            samples[MASK][row] = np.arange(samples[MASK].shape[1]) < size
        samples = {**samples, TARGET: answers_of(model, samples[IDS], samples[MASK])}
    if data is None and is_causal_lm(model):
        samples = _said(model, samples, seed=0)
        if config is not None and config.needs_data:
            # Errors that are taken up by other weights need more text than there are inputs to a layer.
            calibration = _said(model, samples, seed=1, rows=_FOR_GPTQ if config.rounding == "gptq" else None)
    return Job(
        model, inputs, chosen, facts=facts, wanted=wanted, name=name, config=config, samples=samples,
        given=None if data is None else samples, calibration=calibration, members=members,
    )  # fmt: skip


def _said(model: Any, like: Values, seed: int, rows: int | None = None) -> Values:
    """Texts of a language model, as long as other inputs."""
    texts = said_by(model, like[IDS].shape[1], seed, rows=rows)
    return {name: texts if name == IDS else np.ones_like(texts) for name in like}


def _check_can_be_exported(model: Any) -> None:
    refuse_stateful(model)
    if simulation_of(model) is not None:
        raise InputError(f"model {model.name!r} is being quantized; call tfopt.finish(model) before it is exported")
    # A ReLU or a mask may hide it from every output that is compared.
    keras_api.check_finite(keras_api.weights(model))


def _copied(model: Any, in_place: bool) -> Any:
    """What is worked on: in float32, and another object than the caller's unless that is not possible."""
    narrow = computes_narrow(model)
    if stores_narrow(model) or (narrow and not in_place):
        copy = float32_copy(model)
        if copy is None and stores_narrow(model):
            raise InputError(
                f"model {model.name!r} stores weights in 16 bits and cannot be made anew from its configuration: "
                "build it under the policy 'float32' or 'mixed_float16', and load its weights"
            )
    else:
        copy = model if in_place else copy_of(model)
    if copy is None:
        _log.warning(
            "model %r cannot be copied from its configuration: its layers are changed while it is exported, so let "
            "nothing else use it meanwhile", model.name,
        )  # fmt: skip
    return model if copy is None else copy


def _check_wanted(kind: Format, wanted: Wanted, path: Path) -> None:
    _check_path(path, kind)
    quantization = wanted.quantization
    if quantization is not None and not kind.quantizations:
        others = ", ".join(repr(f.name) for f in WRITTEN if f.quantizations)
        raise InputError(f"quantization={quantization!r} needs format={others}; a {kind.title} keeps float weights")
    of_others = {name for format in WRITTEN for name in format.quantizations} - set(kind.quantizations)
    if isinstance(quantization, str) and quantization in of_others and kind.quantizations:
        raise InputError(f"a {kind.title} takes quantization {', '.join(kind.quantizations)}, got {quantization!r}")
    if wanted.jit_compile and not kind.compiles:
        others = ", ".join(repr(f.name) for f in WRITTEN if f.compiles)
        raise InputError(f"jit_compile needs format={others}; a {kind.title} is not compiled by XLA")
    check_accepted(wanted.accept)
    if wanted.allow_flex and (kind.name != "tflite" or quantization not in (None, "float16")):
        raise InputError(f"allow_flex=True is for float TFLite files, got {kind.name} with {quantization!r}")
    if wanted.batch_size < 1:
        raise InputError(f"batch_size must be 1 or more, got {wanted.batch_size}")
    if wanted.cache not in ("float32", "int8"):
        raise InputError(f"cache must be 'float32', or 'int8' for a file that generates, got {wanted.cache!r}")


def _check_path(path: Path, kind: Format) -> None:
    if format_for(path) is not kind:
        wanted = "be a folder, without a suffix of files" if kind.is_folder else f"end in {kind.suffixes[0]}"
        raise InputError(f"the path of format {kind.name!r} must {wanted}, got {path.name!r}")
    if path.exists() and path.is_dir() != kind.is_folder:
        what = "folder" if path.is_dir() else "file"
        raise InputError(f"{path} is a {what}, which format {kind.name!r} cannot replace; choose another path")
    if path.is_dir() and any(path.iterdir()) and not kind.holds(path):
        raise InputError(f"{path} is not empty and holds no {kind.title}; choose another folder")
