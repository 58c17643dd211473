"""`tfopt inspect`, `tfopt export` and `tfopt bench`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from tfopt._base import children
from tfopt._base.files import existing
from tfopt._base.formats import WRITTEN, format_for, format_named
from tfopt.cli import generate
from tfopt.cli.output import Imports, Json, Threads, Trust, figure, progress, show, show_report
from tfopt.errors import InputError
from tfopt.numerics.agreement import ACCEPTABLE

_FORMATS = ", ".join(format.name for format in WRITTEN)
_QUANTIZATIONS = " ".join(f"For {f.name}: {', '.join(f.quantizations)}." for f in WRITTEN if f.quantizations)


def inspect(
    model: Annotated[
        Path, typer.Argument(help="A Keras file, a folder of Hugging Face or KerasHub, or an artifact.")
    ],
    length: Annotated[int, typer.Option(min=1, help="Sequence length, where the model takes any.")] = 128,
    trust: Trust = False,
    imports: Imports = None,
    as_json: Json = False,
) -> None:
    """Shows what is inside a model, and what each technique would do to it."""
    existing(model, "model")
    if not trust:
        children.warm_up()  # loads TensorFlow for the child that opens the file while this process loads it to show
    from tfopt.run.inspection import inspect_apart, inspect_path

    look = inspect_path if trust else inspect_apart
    inspection = look(model, length=length, trust=trust, imports=imports or ())

    def shown() -> None:
        from rich.console import Console

        from tfopt.report.terminal import print_inspection

        print_inspection(inspection, Console())

    show(as_json, dataclasses.asdict(inspection), shown)


def export(
    model: Annotated[Path, typer.Argument(help="A Keras file, or a folder of Hugging Face or KerasHub.")],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="The .tflite or .litertlm file, or SavedModel folder to write.")
    ],
    format: Annotated[
        str | None, typer.Option(help=f"{_FORMATS}; by default what the name of the output says.")
    ] = None,
    quantization: Annotated[
        str | None,
        typer.Option(help=_QUANTIZATIONS),
    ] = None,
    representative: Annotated[Path | None, typer.Option(help="Packed data for ranges and rounding.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Records of it, as many of each class.")] = 128,
    rounding: Annotated[str, typer.Option(help="nearest or gptq.")] = "nearest",
    smooth: Annotated[float | None, typer.Option(help="Share of spread moved into weights, 0 to 1.")] = None,
    rotate: Annotated[bool, typer.Option("--rotate", help="Of models that generate: turn channels first.")] = False,
    max_bytes: Annotated[int | None, typer.Option(min=1, help="Budget of the weights: bits by layer.")] = None,
    max_loss: Annotated[
        float | None, typer.Option(min=0, max=100, help="Percent of classes that bits by layer may change.")
    ] = None,
    jit_compile: Annotated[bool, typer.Option("--jit-compile", help="SavedModel that XLA compiles.")] = False,
    cache: Annotated[str, typer.Option(help="Of models that generate: float32 or int8.")] = "float32",
    lengths: Annotated[list[int] | None, typer.Option("--length", help="Exported length; repeatable.")] = None,
    accept: Annotated[
        list[str] | None, typer.Option(help="A check that may fail, such as agreement; repeatable.")
    ] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="A tokenizer.json that travels in the artifact.")] = None,
    labels: Annotated[
        list[str] | None, typer.Option("--label", help="Name of a class, in their order; repeatable.")
    ] = None,
    allow_flex: Annotated[
        bool, typer.Option("--allow-flex", help="Keep operators that TFLite lacks; such a file cannot be run here.")
    ] = False,
    streamed: Annotated[
        bool,
        typer.Option("--streamed", help="A decoder's checkpoint, one weight at a time; dynamic_int8 unless said."),
    ] = False,
    trust: Trust = False,
    imports: Imports = None,
    as_json: Json = False,
) -> None:
    """Converts a model and verifies what was written."""
    _check_wanted(model, out, format, quantization=quantization, jit_compile=jit_compile, accept=accept or [])
    if streamed:
        others = (representative, smooth, max_bytes, max_loss, tokenizer, labels, imports)
        plain = (rounding, cache, samples) == ("nearest", "float32", 128)
        plain &= not (trust or jit_compile or allow_flex or rotate)
        if any(value is not None for value in others) or not plain:
            raise InputError("--streamed rounds to nearest and takes --quantization, --length and --accept alone")
        from tfopt.export import export_streamed

        found = export_streamed(
            model, out, quantization=quantization or "dynamic_int8", lengths=lengths, accept=accept or ()
        )
        show(as_json, {**dataclasses.asdict(found), "path": str(found.path)}, lambda: _show_artifact(found))
        return
    children.warm_up()  # loads TensorFlow for the verification while this process loads it for the conversion
    from tfopt.export import export as export_model
    from tfopt.models.source import load_any

    loaded = load_any(model, trust=trust, imports=imports or ())
    data = None if representative is None else _calibration_samples(representative, samples)
    chosen: Any = quantization
    if rotate or rounding != "nearest" or any(value is not None for value in (smooth, max_bytes, max_loss)):
        chosen = _refined(
            loaded, quantization, data, budgets=(max_bytes, max_loss), out=out, rounding=rounding, smooth=smooth,
            rotate=rotate,
        )  # fmt: skip
    artifact = export_model(
        loaded,
        out,
        format=format,
        quantization=chosen,
        jit_compile=jit_compile,
        representative=data,
        lengths=lengths,
        cache=cache,
        in_place=True,
        accept=accept or (),
        tokenizer=tokenizer,
        labels=labels,
        allow_flex=allow_flex,
    )
    values = {**dataclasses.asdict(artifact), "path": str(artifact.path)}
    show(as_json, values, lambda: _show_artifact(artifact))


def _show_artifact(artifact: Any) -> None:
    accepted = [check.name for check in artifact.checks if check.accepted]
    but = f", except what was accepted: {', '.join(accepted)}" if accepted else ""
    typer.echo(f"{artifact.path}: every check passed{but}")
    for check in artifact.checks:
        limit = f" (limit {figure(check.limit)})" if check.limit != "" else ""
        typer.echo(f"  {check.name}: {figure(check.found)}{limit}{', accepted' if check.accepted else ''}")
    for layer in artifact.layers:
        grain = f", one scale per {layer.granularity}" if layer.granularity else ""
        why = f" ({layer.reason})" if layer.reason else ""
        typer.echo(f"  {layer.path}: {layer.bits} bits{grain}{why}")


def _check_wanted(
    model: Path, out: Path, format: str | None, quantization: str | None, jit_compile: bool, accept: list[str]
) -> None:
    """What can be said before TensorFlow is loaded, which takes seconds."""
    existing(model, "model")
    kind = format_for(out) if format is None else format_named(format)
    known = ", ".join(kind.quantizations) or f"left out: a {kind.title} keeps float weights"
    if quantization is not None and quantization not in kind.quantizations:
        raise InputError(f"quantization must be {known}; got {quantization!r}")
    if jit_compile and not kind.compiles:
        raise InputError(f"jit_compile is for SavedModels; a {kind.title} is not compiled by XLA")
    for name in accept:
        if name not in ACCEPTABLE:
            raise InputError(f"accept must be a list out of {', '.join(ACCEPTABLE)}, got {name!r}")


def _calibration_samples(folder: Path, count: int) -> dict[str, Any]:
    from tfopt.data import batches
    from tfopt.data.records.manifest import read_manifest

    balanced = bool(read_manifest(folder).labels)
    return batches.samples(folder, count, balanced=balanced)


def _refined(
    model: Any,
    name: str | None,
    data: Any,
    budgets: tuple[int | None, float | None],
    out: Path,
    **settings: Any,
) -> Any:
    """A named quantization with what the command line adds to it."""
    from tfopt.export.integers import refined
    from tfopt.quantization import NAMED
    from tfopt.quantization.sensitivity import choose_bits

    if name is None or name not in NAMED:
        raise InputError(
            f"--rounding, --smooth, --rotate, --max-bytes and --max-loss need --quantization {', '.join(NAMED)}, "
            f"got {name}"
        )
    if settings["rotate"] and budgets != (None, None):
        raise InputError("give either --rotate or a budget: bits are chosen for channels as they are")
    config = refined(name, model, **settings)
    if budgets == (None, None):
        return config
    if data is None:
        raise InputError("--max-bytes and --max-loss need --representative DIR, to measure what each layer loses")
    chosen, table = choose_bits(model, data, config, *budgets)
    typer.echo(table.text(), err=True)
    table.save(out.with_name(out.name + ".sensitivity.json"))
    return chosen


def bench(
    artifacts: Annotated[list[Path], typer.Argument(help="Artifacts; the first is the baseline.")],
    length: Annotated[int, typer.Option(min=1, help="Sequence length to time with.")] = 128,
    data: Annotated[Path | None, typer.Option(help="Packed data to compute the accuracy on.")] = None,
    text: Annotated[Path | None, typer.Option(help="Of models that generate: text for the perplexity.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed calls of each artifact.")] = 50,
    threads: Threads = None,
    trust: Trust = False,
    imports: Imports = None,
    as_json: Json = False,
) -> None:
    """Measures artifacts in turns in one process; models that generate by their answers."""
    for path in artifacts:
        existing(path, "artifact")
    from tfopt.engine.opening import generates
    from tfopt.run import bench as benchmark

    if all(generates(path) for path in artifacts):
        show(
            as_json,
            *generate.bench_generation(artifacts, length, text, rounds=rounds, threads=threads, trust=trust),
        )
        return

    report = benchmark.bench(
        artifacts, length=length, data=data, rounds=rounds, threads=threads, trust=trust, imports=imports or (),
        log=progress,
    )  # fmt: skip
    show(as_json, report.to_dict(), lambda: show_report(report))
