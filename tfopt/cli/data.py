"""`tfopt data pack`, `verify` and `inspect`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from tfopt.cli.output import Json, bar, progress, show

app = typer.Typer(help="Packs text into TFRecord and checks it.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def pack(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT...", help="Texts: .tsv, .csv, .jsonl, .txt, .parquet, or a folder that datasets saved."
        ),
    ],
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
    layout: Annotated[
        str, typer.Option(help="Records: tokens of a text, sequences (several short texts in each), or text.")
    ] = "tokens",
    compression: Annotated[str, typer.Option(help="GZIP, or nothing.")] = "",
    seed: Annotated[int, typer.Option(help="Of the order.")] = 0,
    workers: Annotated[int | None, typer.Option(help="Processes; one for each core if not given.")] = None,
    normalize: Annotated[str | None, typer.Option(help="Unicode normal form: NFC, NFD, NFKC or NFKD.")] = None,
    drop_control: Annotated[bool, typer.Option(help="Remove characters that are not seen.")] = False,
    drop_duplicates: Annotated[bool, typer.Option(help="Leave texts out that came before.")] = False,
    stop_words: Annotated[Path | None, typer.Option(help="File of words to remove, one on each line.")] = None,
    beam: Annotated[
        str | None,
        typer.Option(
            help="Run as an Apache Beam pipeline with these options, for example '--runner=DirectRunner'."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Packs texts into sharded TFRecord with a manifest."""
    from tfopt._base.cores import usable_cores
    from tfopt.data import pack as packing
    from tfopt.data.clean import Cleaning, read_stop_words
    from tfopt.data.job import PackJob
    from tfopt.data.readers.base import of_pieces
    from tfopt.data.readers.open import Sources, open_source
    from tfopt.data.readers.texts import read_piece
    from tfopt.data.tokenizers import load_tokenizer, train_bpe

    opened = [open_source(path, text_column, label_column or None) for path in sources]
    source = opened[0] if len(opened) == 1 else Sources(opened)
    words = frozenset() if stop_words is None else read_stop_words(stop_words)
    cleaning = Cleaning(normalize, drop_control, words, duplicates=drop_duplicates)  # type: ignore[arg-type]
    settings: dict[str, Any] = {
        "max_length": max_length, "shards": shards, "on_long": on_long, "seed": seed, "layout": layout,
        "compression": compression, "cleaning": cleaning,
    }  # fmt: skip
    PackJob(source.name, tokenizer=None, labels=None, **settings)  # looks at the settings before anything is read
    found = None
    if layout != "text":
        pieces = of_pieces(source, read_piece, ((piece,) for piece in source.pieces()))
        texts = (cleaning(text) for piece in pieces for text in piece.texts)
        found = load_tokenizer(tokenizer) if tokenizer else train_bpe(texts, vocab_size)
    if beam is not None:
        from tfopt.data.beam import beam_pack

        manifest = beam_pack(source, found, out=out, options=beam.split(), **settings)
    else:
        with bar(f"pack {out.name}") as progressed:
            manifest = packing.pack(
                source, found, out=out, workers=workers or usable_cores(), progress=progressed, **settings
            )
    if manifest.too_long:
        progress(f"{manifest.too_long} texts were longer than {max_length} tokens ({on_long})")
    for reason, count in manifest.cleaned.items():
        progress(f"{count} texts were left out ({reason})")
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
