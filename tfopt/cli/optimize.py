"""`tfopt optimize` and `tfopt demo`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tfopt._base import children
from tfopt._base.files import existing
from tfopt.cli.output import Imports, Json, Threads, print_json, progress, show_report

_DEMO, _DEMO_MINUTES, _DEMO_GOAL = "demo", 4.0, 0.98
Minutes = Annotated[float | None, typer.Option("--minutes", help="For everything; trainings are planned to fit.")]


def optimize(
    model: Annotated[
        Path, typer.Argument(help="A Keras file of a classifier, or a folder of Hugging Face or KerasHub.")
    ],
    train: Annotated[Path, typer.Option(help="Training texts with labels (.tsv, .csv, .jsonl, .parquet).")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for everything that is written.")],
    validation: Annotated[Path | None, typer.Option(help="Held-out texts; else a tenth of the others.")] = None,
    accuracy: Annotated[
        float | None, typer.Option(help="Goal: share of the model's accuracy to keep; 0.99 without any goal.")
    ] = None,
    max_latency: Annotated[
        float | None,
        typer.Option("--max-latency", "--max-latency-ms", help="Goal instead: median milliseconds for one text."),
    ] = None,
    max_bytes: Annotated[int | None, typer.Option(help="Goal instead: bytes of the file.")] = None,
    minutes: Minutes = None,
    text_column: Annotated[str | None, typer.Option(help="Of tables; by default the only other one.")] = None,
    label_column: Annotated[str, typer.Option(help="Of tables.")] = "label",
    tokenizer: Annotated[Path | None, typer.Option(help="A tokenizer.json, if none is in the model.")] = None,
    max_length: Annotated[int | None, typer.Option(min=1, help="Tokens of a text; longer ones are cut.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Training of a model that has no head yet.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Timed calls of each artifact.")] = 50,
    threads: Threads = None,
    imports: Imports = None,
    as_json: Json = False,
) -> None:
    """Makes a classifier as small and fast as a goal allows: one file to ship. Goes on where it stopped."""
    from tfopt.recipe.goal import check_goal

    check_goal(accuracy, max_latency, max_bytes, minutes=minutes)
    for path, what in ((model, "model"), (train, "training data"), (validation, "validation data")):
        if path is not None:
            existing(path, what)
    children.warm_up()
    from tfopt.search import optimize as make

    found = make(
        model, train, out=out, validation=validation, accuracy=accuracy, max_latency_ms=max_latency,
        max_bytes=max_bytes, minutes=minutes, text_column=text_column, label_column=label_column,
        tokenizer=tokenizer, max_length=max_length, epochs=epochs, rounds=rounds, threads=threads,
        imports=imports or (), log=progress,
    )  # fmt: skip
    _show(found, out, as_json)


def demo(
    out: Annotated[Path | None, typer.Option("--out", help="Folder for everything that is written.")] = None,
    minutes: Minutes = _DEMO_MINUTES,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew.")] = False,
    as_json: Json = False,
) -> None:
    """Trains a small transformer on Python's own documentation, and makes it much faster and smaller."""
    children.warm_up()
    from tfopt.recipe import Recipe
    from tfopt.recipe.goal import check_goal
    from tfopt.search.optimize import forget, optimize_recipe

    target = (out or Path("saved_models", _DEMO)).resolve()
    if overwrite:
        forget(target)
    target.mkdir(parents=True, exist_ok=True)
    goal = check_goal(_DEMO_GOAL, None, None, minutes=minutes)
    found = optimize_recipe(Recipe.load(_DEMO), target, goal=goal, minutes=minutes, log=progress)
    _show(found, target, as_json)


def _show(found: Any, out: Path, as_json: bool) -> None:
    if as_json:
        print_json({
            "file": str(found.file), "sentence": found.sentence, "faster": found.faster, "smaller": found.smaller,
            "share": found.share, "report": found.report.to_dict(),
        })  # fmt: skip
        return
    show_report(found.report)
    typer.echo(f"\n{found.sentence}\nfile: {found.file}\nreport: {out / 'report.html'}")
