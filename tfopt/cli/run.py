"""`tfopt run` and `tfopt verify`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from tfopt._base import children
from tfopt._base.cluster import cluster_of
from tfopt._base.files import existing
from tfopt.cli import archive
from tfopt.cli.output import Imports, Json, print_json, progress, show, show_report
from tfopt.errors import InputError

Out = Annotated[Path | None, typer.Option("--out", help="Folder for everything that is written.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Begin anew over an earlier run.")]


def run(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a built-in recipe.")],
    model: Annotated[
        Path | None, typer.Option(help="Hugging Face folder, or .keras or .gguf file, of the model to start from.")
    ] = None,
    train: Annotated[Path | None, typer.Option(help="Training texts (.tsv, .csv, .jsonl).")] = None,
    validation: Annotated[Path | None, typer.Option(help="Held-out texts.")] = None,
    strategy: Annotated[str | None, typer.Option(help="How devices share the training, as in the recipe.")] = None,
    replicas: Annotated[int | None, typer.Option(help="Devices that train together.")] = None,
    imports: Imports = None, out: Out = None, resume: Resume = False, overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Runs a recipe from data to report."""
    is_file = model is not None and model.is_file() and model.suffix != ".gguf"
    changes = {
        "model.file" if is_file else "model.folder": model, "data.train": train, "data.validation": validation,
        "strategy": strategy, "replicas": replicas,
    }  # fmt: skip
    texts = {key: str(value) for key, value in changes.items() if value is not None}
    if model is not None:
        texts["model.kind"] = "keras" if is_file else "pretrained"
    if train is not None or validation is not None:  # of whatever source the recipe speaks
        texts["data.source"] = "files"
    _run(recipe, texts, out, imports=imports or (), resume=resume, overwrite=overwrite, as_json=as_json)


def _run(
    recipe: str,
    changes: Mapping[str, str],
    out: Path | None,
    imports: Sequence[str],
    resume: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    cluster = cluster_of()
    follows = cluster is not None and not cluster.is_chief
    if not follows:
        children.warm_up()
    from tfopt.recipe import Recipe

    chosen = Recipe.load(recipe).with_changes(changes)
    target = out or Path("saved_models", chosen.name)
    from tfopt._keras.custom import register_classes
    from tfopt.run import pipeline

    register_classes(imports)
    report = pipeline.run(chosen, target, resume=resume, overwrite=overwrite)
    if follows:  # the chief shows it
        return
    if as_json:
        print_json(report.to_dict())
        return
    show_report(report)
    typer.echo(f"\nreport: {target / 'report.html'}")


def launch(
    arguments: Annotated[list[str], typer.Argument(help="The command for each worker: run RECIPE ...")],
    workers: Annotated[int, typer.Option(help="Processes that train together.")] = 2,
    restarts: Annotated[
        int, typer.Option(help="Times that all begin anew, from the last checkpoint, after one was killed.")
    ] = 0,
    ray: Annotated[bool, typer.Option("--ray", help="Workers are actors of Ray Train.")] = False,
) -> None:
    """Starts local processes that train together: tfopt launch --workers 2 -- run RECIPE."""
    if arguments[0] != "run":
        raise InputError(f"workers run recipes: tfopt launch -- run RECIPE, got {arguments[0]!r}")
    if ray:
        from tfopt.run.ray_launch import launch_by_ray as start
    else:
        from tfopt.run.launch import launch as start

    code = start(arguments, workers, restarts=restarts, show=typer.echo)
    if code:
        raise typer.Exit(code)


def verify(
    folder: Annotated[Path, typer.Argument(help="What a run wrote, or a .tfopt archive.")], as_json: Json = False
) -> None:
    """Checks a run's files against its manifest, and its artifacts against the models they came from."""
    existing(folder, "run folder")
    if folder.is_file():
        show(as_json, *archive.check(folder))
        return
    from tfopt.run.verification import verify_run

    checked = verify_run(folder, progress)

    def shown() -> None:
        for name, facts in checked["artifacts"].items():
            typer.echo(f"{name}: {facts}")
        typer.echo(f"{checked['files']} files match the manifest, {len(checked['artifacts'])} artifacts verified")

    show(as_json, checked, shown)
