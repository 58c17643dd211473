"""What commands show: one JSON document, or words; and the options that many of them have."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer

from tfopt._base.remaining import told_now_and_then

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, nothing else there.")]
Trust = Annotated[bool, typer.Option("--trust", help="Run code that a model holds or names; says what that is.")]
Imports = Annotated[
    list[str] | None,
    typer.Option("--import", help="Module or .py file with the classes of a model; it is run. Repeatable."),
]
Threads = Annotated[int | None, typer.Option("--threads", help="Threads of each runtime; all cores if not given.")]


def show(as_json: bool, value: Any, words: Callable[[], None]) -> None:
    """Shows a result as JSON, or in words."""
    if as_json:
        print_json(value)
    else:
        words()


def print_json(value: Any) -> None:
    """One document on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def show_report(report: Any) -> None:
    """A report as a table."""
    from rich.console import Console

    from tfopt.report.terminal import print_report

    print_report(report, Console())


def figure(value: Any) -> str:
    """A number in four digits, anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def progress(line: str) -> None:
    """One line on standard error."""
    typer.echo(line, err=True)


@contextlib.contextmanager
def bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Shows on standard error how much of a job is done and the time that is left: a bar, or a line now and then.

    Yields:
        A function that takes how much is done, and how much there is.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    if sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as shown:
            task = shown.add_task(title)
            yield lambda done, total: shown.update(task, completed=done, total=total)
        return
    yield told_now_and_then(title, progress)
