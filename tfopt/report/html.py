"""The report as one HTML file that needs nothing beside it; the templates are in `templates`."""

import base64
import functools
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jinja2

from tfopt.numerics.metrics import class_scores
from tfopt.report.format import table

if TYPE_CHECKING:
    from tfopt.report.report import Report

# Columns of a second table: the first has to fit a page.
_LATER = frozenset({"gzip", "entropy bound", "bits", "zeros", "p95", "max error", "cache", "same greedy text"})

_TEXT = 280  # characters of a text that are shown


def page(report: "Report", pictures: Mapping[str, bytes], recipe_text: str) -> str:
    """The whole page, pictures included.

    Args:
        report: what is shown.
        pictures: PNG files by name, from `plots`.
        recipe_text: the recipe as TOML.
    """
    head, rows = table(report.artifacts)
    first = [i for i, name in enumerate(head) if name not in _LATER]
    later = [0, *(i for i, name in enumerate(head) if name in _LATER)]
    chosen = report.shipped or None
    return _templates().get_template("page.html").render(
        name=report.recipe.get("name", "comparison"), report=report, recipe_text=recipe_text,
        head=[head[i] for i in first], rows=[[row[i] for i in first] for row in rows], chosen=chosen,
        more_head=[head[i] for i in later], more_rows=[[row[i] for i in later] for row in rows],
        headline=report.notes[0] if chosen else None, notes=report.notes[1:] if chosen else report.notes,
        shown=chosen or report.artifacts[-1].name,
        pictures={name: base64.b64encode(picture).decode() for name, picture in pictures.items()},
        steps=[(step.name, f"{step.seconds:.1f}") for step in report.steps],
    )  # fmt: skip


def table_html(report: "Report") -> str:
    """The table of artifacts."""
    return rows_html(*table(report.artifacts))


def rows_html(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, as notebooks show it."""
    macros: Any = _templates().get_template("table.html").module
    return str(macros.table(head, rows))


@functools.cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tfopt.report"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters.update(facts=_facts, layer_row=_layer_row, counts=_counts, scores=_scores, changes=_changes)
    return environment


def _facts(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = []
    for name, value in values.items():
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        found.append((name.replace("_", " "), text))
    return found


def _layer_row(layer: Mapping[str, Any]) -> tuple[Any, ...]:
    return layer["path"], layer["bits"], layer["granularity"], layer["reason"]


def _counts(confusion: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """The confusion matrix with its heads."""
    classes = [str(name) for name in confusion["classes"]]
    rows = [[f"is {name}", *row] for name, row in zip(classes, confusion["counts"], strict=True)]
    return ["", *(f"said {name}" for name in classes)], rows


def _scores(confusion: Mapping[str, Any]) -> list[list[str]]:
    found = zip(confusion["classes"], class_scores(confusion["counts"]), strict=True)
    return [[str(name), *(f"{value:.1%}" for value in values)] for name, values in found]


def _changes(changed: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the answers that changed; what none of them has is left out."""
    names = {"text": "text", "row": "row", "baseline": "before", "answer": "now", "true": "right"}
    used = [key for key in names if any(key in row for row in changed)]
    used = [key for key in used if key != "row" or "text" not in used]
    rows = [[textwrap.shorten(str(row.get(key, "")), _TEXT, placeholder=" ...") for key in used] for row in changed]
    return [names[key] for key in used], rows
