"""The command line: arguments in, one of the library's functions called, its result shown.

Everything heavy is imported inside the commands, so that help and usage errors come at once.
"""

import contextlib
import dataclasses
import json
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tfopt import cli_archive, cli_generate, cli_search
from tfopt.errors import InputError, TfoptError
from tfopt.native_log import native_log_aside, quiet_exit

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 75

app = typer.Typer(
    help="Makes Keras models smaller and faster, verifies what it wrote, and measures it against where it came "
    "from.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
)  # fmt: skip
data_app = typer.Typer(help="Packs text into TFRecord and checks it.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")
app.command()(cli_generate.generate)
app.command()(cli_archive.pack)
app.command()(cli_archive.unpack)
app.command()(cli_search.search)

Json = cli_generate.Json
Out = Annotated[Path | None, typer.Option("--out", help="Folder for everything that is written.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Begin anew over an earlier run.")]
Threads = Annotated[int | None, typer.Option("--threads", help="Threads of each runtime; all cores if not given.")]


def entry() -> None:
    """`main` as a process of its own."""
    try:
        main()
    finally:
        quiet_exit()


def main() -> None:
    """The `tfopt` command; exits 0 done, 1 failed, 2 bad input, 75 interrupted and resumable."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    with native_log_aside() as native_log:
        try:
            app()
        except _InterruptedBySignal:
            if sys.argv[1:2] == ["search"]:
                _fail("interrupted; the same command goes on from the last finished step", INTERRUPTED)
            if sys.argv[1:2] not in (["run"], ["demo"]):
                _fail("interrupted", FAILED)
            _fail("interrupted; the same command with --resume goes on from the last finished step", INTERRUPTED)
        except InputError as error:
            _fail(str(error), USAGE)
        except TfoptError as error:
            _fail(f"{error}{native_log.kept()}", FAILED)
        except OSError as error:  # a full disk, a folder that may not be written
            _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", FAILED)


@app.command()
def demo(out: Out = None, resume: Resume = False, overwrite: Overwrite = False, as_json: Json = False) -> None:
    """Trains, compresses, exports and measures a small transformer on Python's own documentation."""
    _run("demo", {}, out or Path("saved_models", "demo"), resume=resume, overwrite=overwrite, as_json=as_json)


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a built-in recipe.")],
    model: Annotated[
        Path | None, typer.Option(help="Hugging Face folder or .keras file of the model to start from.")
    ] = None,
    train: Annotated[Path | None, typer.Option(help="Training texts (.tsv, .csv, .jsonl).")] = None,
    validation: Annotated[Path | None, typer.Option(help="Held-out texts.")] = None,
    out: Out = None, resume: Resume = False, overwrite: Overwrite = False, as_json: Json = False,
) -> None:  # fmt: skip
    """Runs a recipe from data to report."""
    is_file = model is not None and model.is_file()
    changes = {
        "model.file" if is_file else "model.folder": model, "data.train": train, "data.validation": validation,
    }  # fmt: skip
    texts = {key: str(value) for key, value in changes.items() if value is not None}
    if model is not None:
        texts["model.kind"] = "keras" if is_file else "pretrained"
    _run(recipe, texts, out, resume=resume, overwrite=overwrite, as_json=as_json)


def _run(
    recipe: str,
    changes: Mapping[str, str],
    out: Path | None,
    resume: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    from tfopt.recipe import Recipe

    chosen = Recipe.load(recipe).with_changes(changes)
    target = out or Path("saved_models", chosen.name)
    from tfopt import pipeline

    report = pipeline.run(chosen, target, resume=resume, overwrite=overwrite)
    if as_json:
        print_json(report.to_dict())
        return
    _show_report(report)
    typer.echo(f"\nreport: {target / 'report.html'}")


@app.command()
def inspect(
    model: Annotated[Path, typer.Argument(help="A Keras file, a Hugging Face folder, or an artifact.")],
    length: Annotated[int, typer.Option(min=1, help="Sequence length, where the model takes any.")] = 128,
    as_json: Json = False,
) -> None:
    """Shows what is inside a model, and what each technique would do to it."""
    from tfopt.inspection import inspect_path

    inspection = inspect_path(model, length=length)

    def show() -> None:
        from rich.console import Console

        from tfopt.report.terminal import print_inspection

        print_inspection(inspection, Console())

    _show(as_json, dataclasses.asdict(inspection), show)


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="A Keras file or a Hugging Face folder.")],
    format: Annotated[str, typer.Option("--format", help="saved_model or tflite.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The .tflite file or SavedModel folder to write.")],
    quantization: Annotated[
        str | None,
        typer.Option(
            help="For tflite: float16, dynamic_int8, dynamic_int4[_block32], weight_only_int4, int8, "
            "int16, or trained."
        ),
    ] = None,
    representative: Annotated[Path | None, typer.Option(help="Packed data for ranges and rounding.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Records of it, as many of each class.")] = 128,
    rounding: Annotated[str, typer.Option(help="nearest or gptq.")] = "nearest",
    smooth: Annotated[float | None, typer.Option(help="Share of spread moved into weights, 0 to 1.")] = None,
    max_bytes: Annotated[int | None, typer.Option(min=1, help="Budget of the weights: bits by layer.")] = None,
    max_loss: Annotated[
        float | None, typer.Option(min=0, max=100, help="Percent of classes that bits by layer may change.")
    ] = None,
    jit_compile: Annotated[bool, typer.Option("--jit-compile", help="SavedModel that XLA compiles.")] = False,
    cache: Annotated[str, typer.Option(help="Of models that generate: float32 or int8.")] = "float32",
    lengths: Annotated[list[int] | None, typer.Option("--length", help="Exported length; repeatable.")] = None,
    as_json: Json = False,
) -> None:
    """Converts a model and verifies what was written."""
    from tfopt.export import export as export_model
    from tfopt.models.source import load_any

    loaded = load_any(model)
    data = None if representative is None else _calibration_samples(representative, samples)
    chosen: Any = quantization
    if rounding != "nearest" or any(value is not None for value in (smooth, max_bytes, max_loss)):
        chosen = _refined(
            loaded, quantization, data, rounding=rounding, smooth=smooth, budgets=(max_bytes, max_loss), out=out
        )
    artifact = export_model(
        loaded,
        out,
        format=format,
        quantization=chosen,
        jit_compile=jit_compile,
        representative=data,
        lengths=lengths,
        cache=cache,
    )
    values = {**dataclasses.asdict(artifact), "path": str(artifact.path)}

    def show() -> None:
        typer.echo(f"{artifact.path}: every check passed")
        for check in artifact.checks:
            limit = f" (limit {_figure(check.limit)})" if check.limit != "" else ""
            typer.echo(f"  {check.name}: {_figure(check.found)}{limit}")
        for layer in artifact.layers:
            grain = f", one scale per {layer.granularity}" if layer.granularity else ""
            why = f" ({layer.reason})" if layer.reason else ""
            typer.echo(f"  {layer.path}: {layer.bits} bits{grain}{why}")

    _show(as_json, values, show)


def _calibration_samples(folder: Path, count: int) -> dict[str, Any]:
    from tfopt.data import batches
    from tfopt.data.pack import read_manifest

    balanced = bool(read_manifest(folder).labels)
    return batches.samples(folder, count, balanced=balanced)


def _refined(
    model: Any,
    name: str | None,
    data: Any,
    rounding: Any,
    smooth: float | None,
    budgets: tuple[int | None, float | None],
    out: Path,
) -> Any:
    """A named quantization with what the command line adds to it."""
    from tfopt.quantization import NAMED
    from tfopt.quantization.sensitivity import choose_bits

    if name is None or name not in NAMED:
        raise InputError(
            f"--rounding, --smooth, --max-bytes and --max-loss need --quantization {', '.join(NAMED)}, got {name}"
        )
    config = dataclasses.replace(NAMED[name], rounding=rounding, smooth=smooth)
    if budgets == (None, None):
        return config
    if data is None:
        raise InputError("--max-bytes and --max-loss need --representative DIR, to measure what each layer loses")
    chosen, table = choose_bits(model, data, config, *budgets)
    typer.echo(table.text(), err=True)
    table.save(out.with_name(out.name + ".sensitivity.json"))
    return chosen


@app.command()
def bench(
    artifacts: Annotated[list[Path], typer.Argument(help="Artifacts; the first is the baseline.")],
    length: Annotated[int, typer.Option(min=1, help="Sequence length to time with.")] = 128,
    data: Annotated[Path | None, typer.Option(help="Packed data to compute the accuracy on.")] = None,
    text: Annotated[Path | None, typer.Option(help="Of models that generate: text for the perplexity.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed calls of each artifact.")] = 50,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measures artifacts in turns in one process; models that generate by their answers."""
    from tfopt import benchmark
    from tfopt.generation import generates

    if all(generates(path) for path in artifacts):
        found, show = cli_generate.bench_generation(artifacts, length, text, rounds=rounds, threads=threads)
        _show(as_json, found, show)
        return

    report = benchmark.bench(artifacts, length=length, data=data, rounds=rounds, threads=threads, log=_progress)
    _show(as_json, report.to_dict(), lambda: _show_report(report))


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="What a run wrote, or a .tfopt archive.")], as_json: Json = False
) -> None:
    """Checks a run's files against its manifest, and its artifacts against the models they came from."""
    if folder.is_file():
        _show(as_json, *cli_archive.check(folder))
        return
    from tfopt.verification import verify_run

    checked = verify_run(folder, _progress)

    def show() -> None:
        for name, facts in checked["artifacts"].items():
            typer.echo(f"{name}: {facts}")
        typer.echo(f"{checked['files']} files match the manifest, {len(checked['artifacts'])} artifacts verified")

    _show(as_json, checked, show)


@data_app.command()
def pack(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="Texts: .tsv, .csv, .jsonl or .txt.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to create.")],
    shards: Annotated[int, typer.Option(help="Files to write.")] = 1,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder with tokenizer.json; trained if not given.")
    ] = None,
    vocab_size: Annotated[int, typer.Option(help="Size of a trained vocabulary.")] = 8192,
    max_length: Annotated[int, typer.Option(help="Most tokens of a text.")] = 128,
    on_long: Annotated[str, typer.Option(help="Longer texts: error, truncate or drop.")] = "error",
    text_column: Annotated[str | None, typer.Option(help="Column of the text.")] = None,
    label_column: Annotated[str, typer.Option(help="Column of the label; '' for unlabelled text.")] = "label",
    as_json: Json = False,
) -> None:
    """Packs a text file into sharded TFRecord with a manifest."""
    from tfopt.data import pack as packing
    from tfopt.data.readers import label_names, read_texts
    from tfopt.data.tokenizers import OnLong, load_tokenizer, train_bpe

    if on_long not in ("error", "truncate", "drop"):
        raise InputError(f"on_long must be error, truncate or drop, got {on_long!r}")
    texts = read_texts(source, text_column, label_column or None)
    labels = label_names(texts) if texts.labels is not None else None
    found = load_tokenizer(tokenizer) if tokenizer else train_bpe(texts.texts, vocab_size)
    long: OnLong = on_long  # type: ignore[assignment]
    manifest = packing.pack(
        texts, found, out=out, max_length=max_length, labels=labels, shards=shards, on_long=long
    )
    if manifest.too_long:
        _progress(f"{manifest.too_long} texts were longer than {max_length} tokens ({on_long})")
    _show(as_json, dataclasses.asdict(manifest), lambda: typer.echo(
        f"{out}: {manifest.records} records in {len(manifest.shards)} shards, {manifest.tokens} tokens"
    ))  # fmt: skip


@data_app.command("verify")
def verify_data(
    folder: Annotated[Path, typer.Argument(help="A packed folder, or one TFRecord file.")],
    as_json: Json = False,
) -> None:
    """Reads packed data to the last byte."""
    from tfopt.data import pack as packing

    counts = packing.verify(folder)
    _show(
        as_json,
        counts,
        lambda: typer.echo(f"{folder}: {counts['records']} records in {counts['files']} files"),
    )


@data_app.command("inspect")
def inspect_data(folder: Annotated[Path, typer.Argument(help="A packed folder.")], as_json: Json = False) -> None:
    """Shows counts, classes and lengths of packed data."""
    from tfopt.data import pack as packing

    found = packing.describe(folder)

    def show() -> None:
        for split, facts in found.items():
            typer.echo(f"{split}:")
            for name, value in facts.items():
                if name != "shards":
                    typer.echo(f"  {name}: {value}")

    _show(as_json, found, show)


def _show(as_json: bool, value: Any, show: Callable[[], None]) -> None:
    if as_json:
        print_json(value)
    else:
        show()


def _show_report(report: Any) -> None:
    from rich.console import Console

    from tfopt.report.terminal import print_report

    print_report(report, Console())


def print_json(value: Any) -> None:
    """One document on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _progress(line: str) -> None:
    typer.echo(line, err=True)


class _InterruptedBySignal(BaseException):
    """Not KeyboardInterrupt, which the command line library would turn into an exit code of its own."""


def _interrupt(number: int, frame: Any) -> None:
    raise _InterruptedBySignal


def _fail(message: str, code: int) -> None:
    with contextlib.suppress(BrokenPipeError):
        sys.stderr.write("tfopt: error: " + " ".join(message.split()) + "\n")
    raise SystemExit(code)


if __name__ == "__main__":
    main()
