"""`tfopt predict`."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tfopt._base.files import existing
from tfopt._base.foreign import read_text, to_text
from tfopt._base.limits import MAX_MEMBER_BYTES
from tfopt._base.remaining import now_and_then
from tfopt._base.spread import Workers
from tfopt.cli.output import Imports, Json, Threads, Trust, progress, show
from tfopt.errors import InputError


def predict(
    artifact: Annotated[Path, typer.Argument(help="A Keras file, SavedModel or .tflite file with a tokenizer.")],
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; without any, lines of standard input.")] = None,
    file: Annotated[Path | None, typer.Option(help="A file with a text in each line.")] = None,
    context: Annotated[
        Path | None, typer.Option(help="Of models that answer questions: the text that holds the answers.")
    ] = None,
    truncate: Annotated[bool, typer.Option("--truncate", help="Leave out what is beyond the longest.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts in one run.")] = 32,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the answers as TFRecord shards; --file may be large, or a table."),
    ] = None,
    text_column: Annotated[
        str | None, typer.Option(help="With --out: column or key of the text in --file.")
    ] = None,
    shard_rows: Annotated[
        int | None, typer.Option(min=1, help="With --out: answers in a file, at least; 65536 if not given.")
    ] = None,
    workers: Annotated[int, typer.Option(help="With --out: processes, each with the artifact loaded.")] = 1,
    ray: Annotated[bool, typer.Option("--ray", help="With --out: workers are actors of Ray.")] = False,
    threads: Threads = None,
    trust: Trust = False,
    imports: Imports = None,
    as_json: Json = False,
) -> None:
    """Answers texts: label and probability, entities, or the part that answers a question."""
    existing(artifact, "artifact")
    if out is not None:
        if file is None or texts or context is not None:
            raise InputError("--out is for the texts of a file: give --file, and no texts or --context")
        settings = {"text_column": text_column, "batch_size": batch_size, "threads": threads, "trust": trust}
        settings |= {} if shard_rows is None else {"shard_rows": shard_rows}
        _to_records(
            artifact, file, out, workers=Workers(workers, "ray" if ray else "processes"), as_json=as_json,
            imports=imports or (), on_long="truncate" if truncate else None, **settings,
        )  # fmt: skip
        return
    if workers != 1 or ray or (text_column, shard_rows) != (None, None):
        raise InputError("--workers, --ray, --text-column and --shard-rows go with --out FOLDER")
    asked: list[Any] = _asked(texts, file)
    if context is not None:
        around = read_text(context, "context", most=MAX_MEMBER_BYTES)
        asked = [(question, around) for question in asked]
    from tfopt.engine.opening import generates
    from tfopt.runtime import Predictor

    if generates(artifact):
        raise InputError(
            f"{artifact} generates: `tfopt generate {artifact} --prompt TEXT` continues a text, or translates it"
        )
    predictor = Predictor.load(artifact, threads=threads, trust=trust, imports=imports or ())
    found = predictor.predict(asked, batch_size=batch_size, on_long="truncate" if truncate else None)
    rows = [{name: _plain(values[i]) for name, values in found.items()} for i in range(len(asked))]

    def shown() -> None:
        for text, row in zip(asked, rows, strict=True):
            typer.echo("\t".join([*map(_word, row.values()), text if isinstance(text, str) else text[0]]))

    show(as_json, {"answers": [{"text": text, **row} for text, row in zip(asked, rows, strict=True)]}, shown)


def _to_records(artifact: Path, file: Path, out: Path, *, as_json: bool, **settings: Any) -> None:
    from tfopt.engine.batch_prediction import batch_predict

    told = now_and_then(progress)
    manifest = batch_predict(
        artifact, file, out=out, progress=lambda rows: told(f"{rows} texts answered"), **settings
    )
    show(as_json, dataclasses.asdict(manifest), lambda: typer.echo(
        f"{out}: {manifest.records} answers in {len(manifest.shards)} shards"
    ))  # fmt: skip


def _asked(texts: list[str] | None, file: Path | None) -> list[str]:
    if texts and file is not None:
        raise InputError(f"give either texts or --file, got both ({len(texts)} texts and {file})")
    if texts:
        return texts
    if file is None:
        content = to_text(sys.stdin.buffer.read(), "standard input")
    else:
        content = read_text(file, "texts", most=MAX_MEMBER_BYTES)
    lines = [line for line in content.splitlines() if line.strip()]
    if not lines:
        raise InputError(f"{file or 'standard input'} holds no text; give one or more")
    return lines


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, tuple):
        return [dataclasses.asdict(one) for one in value]
    return value.tolist()


def _word(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1%}"
    if isinstance(value, list) and all(isinstance(one, dict) for one in value):
        return ", ".join(f"{one['text']} ({one['label']})" for one in value) or "-"
    return str(value)
