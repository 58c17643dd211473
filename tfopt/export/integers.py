"""Quantized TFLite files: from a model's grids and ranges, trained or found on representative data."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tfopt._base.children import run_in_child
from tfopt._base.spread import ALONE, Workers
from tfopt._keras import keras_api
from tfopt._keras.keras_io import Inputs
from tfopt._keras.sizes import Size
from tfopt.decoding.weights import config_of, is_causal_lm
from tfopt.errors import InputError, VerificationError
from tfopt.export.artifact import Check
from tfopt.export.convert import convert, signature_of
from tfopt.export.decoder import APART
from tfopt.export.job import Job, Written, outputs_of
from tfopt.export.observed import Samples
from tfopt.export.rounding import rounded_in_order
from tfopt.export.said import IDS
from tfopt.export.signatures import pad_to
from tfopt.export.static import check_float_left, write_static
from tfopt.models.keras_hub import is_known
from tfopt.models.rotated import is_turned, turns_stream
from tfopt.quantization.calibration import Improved, calibrate, quantize_weights
from tfopt.quantization.config import BLOCKS, NAMED, QuantizeConfig, Rounding
from tfopt.quantization.kinds import layouts
from tfopt.quantization.plan import plan_weights
from tfopt.quantization.record import Grid, Record, as_matrix, record_of
from tfopt.quantization.simulation import Simulation
from tfopt.quantization.smooth import smoothed
from tfopt.quantization.weights import came_in_blocks, on_grids
from tfopt.tflite.file import read_tflite
from tfopt.tflite.grids import SMALLEST_QUANTIZED, layer_bits, nearest_grid, size_of, write_grids
from tfopt.tflite.layer_bits import LayerBits
from tfopt.tflite.lookups import look_up_rows
from tfopt.tflite.matching import Matched, Origins, Unmatched
from tfopt.tflite.offsets import check_offsets
from tfopt.tflite.owners import Owners

TRAINED = "trained"
# Of language models, a few channels reach many times as far as the others, and one range for a token leaves those
# few steps.
SMOOTH = 0.5
FLOAT_KINDS = (None, "float16")


@dataclasses.dataclass(frozen=True)
class Quantized:
    """A quantized file that was written.

    Attributes:
        record: the grids and ranges behind it.
        matched: its weights with their grids.
        layers: bits of every matrix.
        checks: what was checked on the way.
    """

    record: Record
    matched: list[Matched]
    layers: tuple[LayerBits, ...]
    checks: list[Check]


def resolve(quantization: Any, model: Any) -> tuple[str | None, QuantizeConfig | None]:
    """The name and configuration that `quantization` means for this model.

    Raises:
        InputError: an unknown name, "trained" for a model without a record, or fewer bits than were trained.
    """
    record = record_of(model)
    if quantization in FLOAT_KINDS:
        return quantization, None
    if quantization == TRAINED:
        if record is None:
            raise InputError(f"quantization='trained' needs a model that finish() gave back; {model.name!r} is not")
        return TRAINED, record.config
    if isinstance(quantization, QuantizeConfig):
        config, name = quantization, _name_of(quantization, model)
    elif quantization in NAMED:
        config, name = config_named(str(quantization), model), str(quantization)
    else:
        names = ", ".join(str(q) for q in (*FLOAT_KINDS, *NAMED, TRAINED))
        raise InputError(f"quantization must be one of {names} or a QuantizeConfig, got {quantization!r}")
    if record is not None:
        most = max((g.spec.bits for g in record.grids.values()), default=0)
        _check_kind(record, config, name)
        if most > (config.weight_bits or 8):
            raise InputError(
                f"model {model.name!r} was trained with {most}-bit weights, and {name} would round them again to "
                f"{config.weight_bits}; export it as 'trained', or train it with weight_bits={config.weight_bits}"
            )
    return name, config


def _name_of(config: QuantizeConfig, model: Any) -> str:
    return next((name for name in NAMED if config in (NAMED[name], config_named(name, model))), "custom")


def config_named(name: str, model: Any, *, rotate: bool = False) -> QuantizeConfig:
    """What a name of `quantization.NAMED` means for a model; a `QuantizeConfig` is taken as it is.

    Activations of language models have channels that reach far. In 4 bits they collapse with one scale for each
    output channel, and their tables, which all tokens come from and are compared with, keep 8. Weights that came in
    blocks of 4 bits, as those of GGUF files do, keep these. Where channels are turned no such blocks are left, nor
    channels to be smoothed if all are.
    """
    config = dataclasses.replace(NAMED[name], rotate=rotate)
    dynamic, few = config.activations == "dynamic", (config.weight_bits or 8) < 8
    if not (is_causal_lm(model) or is_known(model)) or not (dynamic or few):
        return config
    spread = not (rotate and is_causal_lm(model) and turns_stream(config_of(model)))
    config = dataclasses.replace(config, smooth=SMOOTH if spread else None, table_bits=8 if few else None)
    if few and dynamic and config.weight_granularity == "channel":
        config = dataclasses.replace(config, weight_granularity=BLOCKS[0])
    as_they_came = dataclasses.replace(config, weight_symmetric=False, smooth=None) if few and dynamic else None
    if as_they_came is None or rotate or not came_in_blocks(model, as_they_came):
        return config
    return as_they_came


def refined(
    name: str, model: Any, rounding: Rounding, *, smooth: float | None = None, rotate: bool = False, **others: Any
) -> QuantizeConfig:
    """What a name of `quantization.NAMED` means for a model, with what a recipe or command line adds to it.

    Raises:
        InputError: a rounding that is none, or smoothing outside its range.
    """
    config = dataclasses.replace(config_named(name, model, rotate=rotate), rounding=rounding, **others)
    return config if smooth is None else dataclasses.replace(config, smooth=smooth)


def _check_kind(record: Record, config: QuantizeConfig, name: str) -> None:
    """Raises InputError where a file of this kind cannot hold the grids that were trained."""
    specs = [grid.spec for grid in record.grids.values()]
    if config.activations != "dynamic" and any(isinstance(s.granularity, int) for s in specs):
        raise InputError(f"the model was trained in blocks, which {name} files cannot hold; export it as 'trained'")
    if config.activations != "none" and not all(s.symmetric or s.has_offsets for s in specs):
        raise InputError(f"the model was trained with asymmetric weights, which {name} files cannot multiply by")


def _check_untouched(model: Any, record: Record) -> None:
    """Raises InputError if the weights no longer are what `finish` left."""
    for weight in keras_api.weights(model):
        grid = record.grids.get(weight.path)
        if grid is not None:
            now = as_matrix(keras_api.to_numpy(weight.variable), layouts(weight.layer)[weight.name])
            if not np.allclose(now, grid.values, rtol=1e-3, atol=1e-3 * float(np.abs(grid.values).max())):
                raise InputError(
                    f"weight {weight.path!r} changed after finish(); quantize and train the model anew to export it"
                )


def make_record(
    model: Any, config: QuantizeConfig, inputs: Inputs, representative: dict[str, np.ndarray] | None,
    workers: Workers = ALONE,
) -> tuple[Record, list[Check]]:  # fmt: skip
    """Grids and ranges for a file: those that were trained, else new ones.

    Raises:
        InputError: static quantization without data.
    """
    trained = record_of(model)
    if trained is not None:
        _check_untouched(model, trained)
        checks: list[Check] = []
        record = dataclasses.replace(trained, config=config)
    else:
        if config.needs_data and representative is None:
            raise InputError(_NEEDS_DATA)
        record, improved = _rounded(model, config, inputs, representative=representative)
        checks = [] if improved is None else [_gptq_check(improved)]
    if config.is_static and not record.ranges:
        if representative is None:
            raise InputError(_NEEDS_DATA)
        record, rows = calibrate(model, record, inputs, samples=representative, workers=workers)
        checks.append(Check("calibration", f"{rows} rows, {len(record.ranges)} ranges", "every batch seen"))
    return record, checks


def _rounded(
    model: Any, config: QuantizeConfig, inputs: Inputs, representative: dict[str, np.ndarray] | None
) -> tuple[Record, Improved | None]:
    """Grids for weights as they are."""
    if config.rounding != "gptq" or not is_causal_lm(model):
        return quantize_weights(model, config, inputs, samples=representative)
    assert representative is not None
    record, _ = quantize_weights(model, dataclasses.replace(config, rounding="nearest"))
    grids, improved = rounded_in_order(model, record.grids, representative[IDS])
    return dataclasses.replace(record, config=config, grids=grids), improved


_NEEDS_DATA = (
    "static quantization, GPTQ and smoothing need representative data: pass representative={name: array}, or train "
    "the model with quantize_aware(...)"
)


def _gptq_check(improved: Improved) -> Check:
    found = f"{improved.better} of {improved.tried} matrices, mean error {improved.error_ratio:.2f} of nearest"
    return Check("gptq", found, "better than rounding to nearest, else that is kept")


@contextlib.contextmanager
def smoother(
    model: Any, config: QuantizeConfig, inputs: Inputs, representative: dict[str, np.ndarray] | None
) -> Iterator[list[Check]]:
    """While entered, the spread of activations is in the weights, if the configuration says so."""
    if config.smooth is None or record_of(model) is not None:
        yield []
        return
    if representative is None:
        raise InputError(_NEEDS_DATA)
    few = (config.weight_bits or 8) < 8
    with smoothed(model, inputs, representative, strength=config.smooth, few_bits=few) as places:
        yield [Check("smooth", f"{places} places", "reported")]


# (whether norms may be folded into the weights behind them, scopes of layers) -> the float file of a decoder.
Converter = Callable[[bool, Owners], bytes]


def write_integers(job: Job, path: Path, decoder: Converter | None = None) -> Written:
    """Writes a quantized file.

    Args:
        job: the export.
        path: the file.
        decoder: of models that generate.

    Raises:
        InputError: static quantization of a model that generates, or without data.
        VerificationError: named "grids".
    """
    assert job.config is not None
    with smoother(job.model, job.config, job.inputs, representative=job.calibration) as smoothing:
        record, checks = make_record(
            job.model, job.config, job.inputs, representative=job.calibration, workers=job.wanted.workers
        )
        written = _write(job, path, record, decoder=decoder)
        with as_written(job.model, written):
            expected = outputs_of(job)
    return Written(expected, (*smoothing, *checks, *written.checks), written.layers)


def write_decoder(job: Job, path: Path, converter: Converter) -> Written:
    """Writes a TFLite file that generates, in float or in integers; raises as `write_integers`."""
    if job.config is not None:
        return write_integers(job, path, converter)
    path.write_bytes(converter(True, Owners.of(())))
    return Written()


def _write(job: Job, path: Path, record: Record, decoder: Converter | None) -> Quantized:
    """Converts the model and writes its grids into the file."""
    model, config, origins = job.model, record.config, _origins(job.model, record)
    inputs, lengths, batch, representative = job.inputs, job.lengths, job.wanted.batch_size, job.given
    if decoder is not None:
        if config.is_static:
            raise InputError("files that generate have no static kind: use a dynamic or weight-only one")
        content = decoder(_may_fold(record), origins.owners)
    else:
        with contextlib.nullcontext() if _may_fold(record) else frozen(model, record):
            content = convert(model, inputs, lengths, batch=batch, owners=origins.owners, unrolled=config.is_static)
    if config.is_static:
        samples = None if representative is None else _by_signature(representative, inputs, lengths, batch=batch)
        content, matched = run_in_child(write_static, content, config, origins, samples)
        layers = layer_bits(record, matched)
    else:
        turned = is_turned(model)
        content, matched, layers = write_grids(
            content,
            record,
            look_up_rows,
            fallback=lambda weight: _fallback(weight, record, turned),
            origins=origins,
        )
    if record.grids and not matched:
        raise VerificationError("grids", "none of the model's weights was found in the converted file")
    path.write_bytes(content)
    checks = [check_grids(path, matched)]
    if config.is_static:
        checks.append(Check("float_operators", float(check_float_left(path)), "reported"))
    return Quantized(record, matched, tuple(layers), checks=checks)


def _origins(model: Any, record: Record) -> Origins:
    skipped = {skip.path for skip in record.skipped}
    floats = {
        w.path: as_matrix(keras_api.to_numpy(w.variable), layouts(w.layer)[w.name])
        for w in keras_api.weights(model)
        if w.path in skipped and w.name in layouts(w.layer)
    }
    return Origins(record.grids, floats, Owners.of([*record.grids, *floats]))


def _is_plain(record: Record) -> bool:
    """Whether every weight is to be rounded as it stands, and nothing was decided for single ones."""
    config = record.config
    chosen = config.include is not None or config.exclude is not None or bool(config.bits)
    return not record.trained and not chosen and config.weight_bits is not None


def _may_fold(record: Record) -> bool:
    """Whether the converter may multiply the gamma of a norm into the weights behind it, which saves 3 % of time.

    Only 8 bits rounded to nearest are none the worse for it: no grid was made for the weights as they were.
    """
    config = record.config
    as_it_stands = config.rounding == "nearest" and config.weight_scale == "max" and not config.is_static
    as_it_stands &= config.smooth is None  # the gamma would take the spread of activations back
    return _is_plain(record) and as_it_stands and config.weight_granularity == "channel" and config.weight_bits == 8


def _fallback(weight: Unmatched, record: Record, turned: bool) -> Grid | None:
    """After training, what has no grid was meant to stay in float; else it is rounded as it stands.

    Matrices that turn channels are no weights of the model: they are there so that what they give can be rounded.
    """
    if (
        not _is_plain(record)
        or (turned and weight.path is None)
        or size_of(weight.found) < SMALLEST_QUANTIZED
        or any(APART in name for name in weight.found.names)
    ):
        return None
    return nearest_grid(weight.found, record.config.weight_bits or 8, weight.path or weight.found.name)


def check_grids(path: Path, matched: list[Matched]) -> Check:
    """Reads the integers and scales back from the file and compares them with the grids.

    Raises:
        VerificationError: named "grids".
    """
    stored = {c.name: c for c in read_tflite(path).constants}
    for item in matched:
        constant = next((stored[name] for name in item.found.names if name in stored), None)
        if constant is None or constant.scale is None:
            raise VerificationError("grids", f"weight {item.found.name!r} is not an integer tensor of the file")
        integers = np.moveaxis(constant.data, item.found.axis, 0).reshape(item.grid.integers.shape)
        if (integers != item.grid.integers).any():
            raise VerificationError("grids", f"weight {item.found.name!r} holds other integers than its grid")
        if not np.allclose(constant.scale, _like(item.grid.scale, constant.scale), rtol=1e-6, atol=0):
            raise VerificationError("grids", f"weight {item.found.name!r} has other scales than its grid")
        if item.grid.spec.has_offsets:
            check_offsets(item, list(stored.values()))
    return Check("grids", f"{len(matched)} weights", "integers and scales of the file are those of the model")


def _like(scale: np.ndarray, stored: np.ndarray) -> np.ndarray:
    """The grid's scales in the shape of the file's, which may repeat the one of a tensor for each output."""
    return np.full(stored.shape, scale.item()) if scale.size == 1 else scale.reshape(stored.shape)


@contextlib.contextmanager
def frozen(model: Any, record: Record) -> Iterator[None]:
    """While entered, static activations are rounded to the record's ranges, and nothing is folded into inputs."""
    config = record.config
    simulation = Simulation(
        model, config, plan_weights(model, config), mode="frozen", ranges=record.ranges
    ).install()
    try:
        yield
    finally:
        simulation.remove()


@contextlib.contextmanager
def as_written(model: Any, written: Quantized) -> Iterator[None]:
    """While entered, the model computes what the file should: weights on grids, activations in ranges."""
    record = written.record
    names = {m.grid.path for m in written.matched} if not record.trained else set()
    with (
        on_grids(model, {path: grid for path, grid in record.grids.items() if path in names}),
        frozen(model, record) if record.config.is_static else contextlib.nullcontext(),
    ):
        yield


def _by_signature(samples: dict[str, np.ndarray], inputs: Inputs, lengths: tuple[Size, ...], batch: int) -> Samples:
    """Samples cut and padded for each signature, in its batch size; the last rows fill it again."""
    rows = len(next(iter(samples.values())))
    places = np.arange(-(-rows // batch) * batch) % rows
    found = {}
    for size in lengths or (None,):
        shaped = {name: pad_to(samples[name], inputs.specs[name], size) for name in inputs.specs}
        parts = places.reshape(-1, batch)
        found[signature_of(size)] = [{n: v[part] for n, v in shaped.items()} for part in parts]
    return found
