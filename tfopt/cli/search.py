"""`tfopt search`."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from tfopt._base.files import existing
from tfopt.cli.output import Imports, Json, print_json


def search(
    model: Annotated[Path, typer.Argument(help="The .keras file of a trained classifier.")],
    data: Annotated[Path, typer.Option(help="Packed data with splits train and validation, as a run has.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for everything that is written.")],
    max_bytes: Annotated[int | None, typer.Option(help="Budget: bytes of the artifact.")] = None,
    max_packed_bytes: Annotated[int | None, typer.Option(help="Budget: bytes of the packed artifact.")] = None,
    max_latency_ms: Annotated[float | None, typer.Option(help="Budget: median for one row.")] = None,
    max_loss: Annotated[float | None, typer.Option(help="Budget: points of accuracy (percent) to lose.")] = None,
    points: Annotated[int, typer.Option(help="Models to build and measure.")] = 8,
    epochs: Annotated[int, typer.Option(min=0, help="Training of each with the float model's answers.")] = 0,
    samples: Annotated[int, typer.Option(min=2, help="Texts for the sensitivity table.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Timed calls of each artifact.")] = 50,
    threads: Annotated[int | None, typer.Option(help="Of each runtime; all cores if not given.")] = None,
    imports: Imports = None,
    as_json: Json = False,
) -> None:
    """Finds layers, heads, neurons, ranks, zeros and bits that meet a budget; goes on where it stopped."""
    existing(model, "model")
    existing(data, "packed data")
    from tfopt._keras.custom import register_classes
    from tfopt.search import search as find

    register_classes(imports or ())
    found = find(
        model, data, out=out, max_bytes=max_bytes, max_packed_bytes=max_packed_bytes,
        max_latency_ms=max_latency_ms, max_loss=max_loss, points=points, epochs=epochs, samples=samples,
        rounds=rounds, threads=threads,
    )  # fmt: skip
    assert found.chosen is not None  # else it was refused
    if as_json:
        print_json({
            "chosen": found.chosen.name, "front": [p.name for p in found.front],
            "points": [dataclasses.asdict(p) for p in found.points],
        })  # fmt: skip
        return
    typer.echo(found.text())
    typer.echo(f"\nchosen: {found.chosen.artifact}\nrecipe: {found.chosen.recipe or 'none needed'}")
