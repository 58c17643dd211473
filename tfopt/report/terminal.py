"""Reports and inspections as terminal tables."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from tfopt.report.format import table
from tfopt.report.report import Report


def print_report(report: Report, console: Console) -> None:
    """Prints the table of artifacts and the notes below it."""
    _print_table(*table(report.artifacts), console)
    for note in report.notes:
        console.print(f"* {note}", soft_wrap=True, highlight=False, markup=False)


def print_inspection(inspection: Any, console: Console) -> None:
    """Prints an `Inspection`: one row per layer, the sums below."""
    head, rows = inspection.table()
    _print_table(head, rows, console)
    console.print(inspection.summary(), soft_wrap=True, highlight=False, markup=False)


def _print_table(columns: Sequence[str], rows: list[list[str]], console: Console) -> None:
    shown = Table(box=None, header_style="bold", pad_edge=False)
    for i, column in enumerate(columns):
        shown.add_column(column, justify="left" if i == 0 or i == len(columns) - 1 else "right", no_wrap=True)
    for values in rows:
        shown.add_row(*values)
    # Cut to the width of a pipe or a narrow window, a table would lose figures.
    wide = Console(file=console.file, width=max(console.width, Console(width=10_000).measure(shown).maximum))
    wide.print(shown, crop=False)
