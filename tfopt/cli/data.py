"""`tfopt data pack`, `verify` and `inspect`."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from tfopt.cli.output import Json, progress, show
from tfopt.errors import InputError

app = typer.Typer(help="Packs text into TFRecord and checks it.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
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
        progress(f"{manifest.too_long} texts were longer than {max_length} tokens ({on_long})")
    show(as_json, dataclasses.asdict(manifest), lambda: typer.echo(
        f"{out}: {manifest.records} records in {len(manifest.shards)} shards, {manifest.tokens} tokens"
    ))  # fmt: skip


@app.command("verify")
def verify_data(
    folder: Annotated[Path, typer.Argument(help="A packed folder, or one TFRecord file.")],
    as_json: Json = False,
) -> None:
    """Reads packed data to the last byte."""
    from tfopt.data.verify import verify

    counts = verify(folder)
    show(
        as_json,
        counts,
        lambda: typer.echo(f"{folder}: {counts['records']} records in {counts['files']} files"),
    )


@app.command("inspect")
def inspect_data(folder: Annotated[Path, typer.Argument(help="A packed folder.")], as_json: Json = False) -> None:
    """Shows counts, classes and lengths of packed data."""
    from tfopt.data.describe import describe

    found = describe(folder)

    def shown() -> None:
        for split, facts in found.items():
            typer.echo(f"{split}:")
            for name, value in facts.items():
                if name != "shards":
                    typer.echo(f"  {name}: {value}")

    show(as_json, found, shown)
