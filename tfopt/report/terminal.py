"""Reports and inspections as terminal tables."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from tfopt.report.format import megabytes, table
from tfopt.report.report import Report


def print_report(report: Report, console: Console) -> None:
    """Prints the table of artifacts and the notes below it."""
    _print_table(*table(report.artifacts), console)
    for note in report.notes:
        console.print(f"* {note}", soft_wrap=True, highlight=False, markup=False)


def print_inspection(inspection: Any, console: Console) -> None:
    """Prints an `Inspection`: one row per layer, the sums below."""
    columns = ("layer", "kind", "parameters", "bytes", "bits", "zeros", "multiply-adds", "time", "techniques")
    rows = [
        [
            x.name, x.kind, f"{x.parameters:,}", f"{x.bytes:,}", f"{x.bits:.3g}",
            "" if x.sparsity is None else f"{x.sparsity:.1%}",
            "" if x.multiply_adds is None else f"{x.multiply_adds:,}",
            "" if x.time_share is None else f"{x.time_share:.1%}",
            "; ".join(f"{name}: {what}" for name, what in x.techniques.items()),
        ]
        for x in inspection.layers
    ]  # fmt: skip
    _print_table(columns, rows, console)
    work = "" if inspection.multiply_adds is None else f", {inspection.multiply_adds:,} multiply-adds per row"
    console.print(
        f"{inspection.name} ({inspection.format}): {inspection.parameters:,} parameters, "
        f"{megabytes(inspection.bytes)}{work}",
        soft_wrap=True, highlight=False, markup=False,
    )  # fmt: skip


def _print_table(columns: Sequence[str], rows: list[list[str]], console: Console) -> None:
    shown = Table(box=None, header_style="bold", pad_edge=False)
    for i, column in enumerate(columns):
        shown.add_column(column, justify="left" if i == 0 or i == len(columns) - 1 else "right", no_wrap=True)
    for values in rows:
        shown.add_row(*values)
    # Cut to the width of a pipe or a narrow window, a table would lose figures.
    wide = Console(file=console.file, width=max(console.width, Console(width=10_000).measure(shown).maximum))
    wide.print(shown, crop=False)
