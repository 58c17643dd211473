"""What commands show: one JSON document, or words; and the options that many of them have."""

import json
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, nothing else there.")]
Trust = Annotated[bool, typer.Option("--trust", help="Run code that a model holds or names; says what that is.")]
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
