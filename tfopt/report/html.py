"""The report as one HTML file that needs nothing beside it; the templates are in `templates`."""

import base64
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jinja2

from tfopt.report.format import table

if TYPE_CHECKING:
    from tfopt.report.report import Report


def page(report: "Report", pictures: Mapping[str, bytes], recipe_text: str) -> str:
    """The whole page, pictures included.

    Args:
        report: what is shown.
        pictures: PNG files by name, from `plots`.
        recipe_text: the recipe as TOML.
    """
    head, rows = table(report.artifacts)
    return _templates().get_template("page.html").render(
        name=report.recipe.get("name", "comparison"), report=report, head=head, rows=rows, recipe_text=recipe_text,
        pictures={name: base64.b64encode(picture).decode() for name, picture in pictures.items()},
        steps=[(step.name, f"{step.seconds:.1f}") for step in report.steps],
    )  # fmt: skip


def table_html(report: "Report") -> str:
    """The table of artifacts."""
    macros: Any = _templates().get_template("table.html").module
    return str(macros.table(*table(report.artifacts)))


@functools.cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tfopt.report"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters.update(facts=_facts, layer_row=_layer_row)
    return environment


def _facts(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = []
    for name, value in values.items():
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        found.append((name.replace("_", " "), text))
    return found


def _layer_row(layer: Mapping[str, Any]) -> tuple[Any, ...]:
    return layer["path"], layer["bits"], layer["granularity"], layer["reason"]
