"""The report as one HTML file that needs nothing beside it."""

import base64
import html
from collections.abc import Mapping
from typing import Any

from tfopt.report.format import table
from tfopt.report.report import Report

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
tbody tr:first-child { background: #f4f6f8; }
img { max-width: 100%; margin: .5rem 1rem .5rem 0; }
pre { background: #f4f6f8; padding: .8rem; overflow-x: auto; font-size: 13px; }
"""


def page(report: Report, pictures: Mapping[str, bytes], recipe_text: str) -> str:
    """The whole page, pictures included.

    Args:
        report: what is shown.
        pictures: PNG files by name, from `plots`.
        recipe_text: the recipe as TOML.
    """
    name = html.escape(str(report.recipe.get("name", "comparison")))
    images = "".join(
        f'<img alt="{html.escape(n)}" src="data:image/png;base64,{base64.b64encode(p).decode()}">'
        for n, p in pictures.items()
    )
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in report.notes)
    steps = _table(("step", "seconds"), [[s.name, f"{s.seconds:.1f}"] for s in report.steps])
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>tfopt: {name}</title>'
        f"<style>{_STYLE}</style></head><body><h1>tfopt: {name}</h1>{table_html(report)}"
        f"<h2>What the figures say</h2><ul>{notes or '<li>Nothing out of the ordinary.</li>'}</ul>"
        f"<h2>Size, latency and accuracy</h2>{images}{_layers(report)}<h2>Data</h2>{_facts(report.data)}"
        f"<h2>Steps</h2>{steps}<h2>Machine</h2>{_facts(report.machine)}"
        f"<h2>Recipe</h2><pre>{html.escape(recipe_text)}</pre></body></html>\n"
    )


def table_html(report: Report) -> str:
    """The table of artifacts."""
    return _table(*table(report.artifacts))


def _layers(report: Report) -> str:
    """The bits of every matrix, one folded table per artifact."""
    parts = []
    for artifact in report.artifacts:
        if artifact.layers:
            rows = [[x["path"], str(x["bits"]), x["granularity"], x["reason"]] for x in artifact.layers]
            table = _table(("weight", "bits", "one scale per", "why"), rows)
            parts.append(f"<details><summary>{html.escape(artifact.name)}</summary>{table}</details>")
    return f"<h2>Bits of every layer</h2>{''.join(parts)}" if parts else ""


def _table(head: Any, rows: list[list[str]]) -> str:
    cells = "".join(f"<th>{html.escape(h)}</th>" for h in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in r) + "</tr>" for r in rows)
    return f'<div class="wide"><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'


def _facts(values: Mapping[str, Any]) -> str:
    flat = []
    for name, value in values.items():
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        flat.append([name.replace("_", " "), text])
    return _table(("", ""), flat)
