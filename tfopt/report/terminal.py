"""The report as a terminal table."""

from rich.console import Console
from rich.table import Table

from tfopt.report.format import COLUMNS, row
from tfopt.report.report import Report


def print_report(report: Report, console: Console) -> None:
    """Prints the table of artifacts and the notes below it; columns without any figure are left out."""
    rows = [row(m) for m in report.artifacts]
    used = [i for i in range(len(COLUMNS)) if any(r[i] for r in rows)]
    table = Table(box=None, header_style="bold", pad_edge=False)
    for i in used:
        table.add_column(COLUMNS[i], justify="left" if i == 0 else "right", no_wrap=True)
    for values in rows:
        table.add_row(*(values[i] for i in used))
    # A table cut to the width of a pipe or a narrow window would lose figures.
    needed = console.measure(table).maximum
    console.print(table, width=max(console.width, needed), crop=False, soft_wrap=True)
    for note in report.notes:
        console.print(f"* {note}", soft_wrap=True, highlight=False)
