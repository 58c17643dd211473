"""Pictures of a report: accuracy against size and against latency."""

import io
from collections.abc import Callable

from tfopt.measure.results import Measurement
from tfopt.report.report import Report

_COLORS = {"keras": "#8c564b", "saved_model": "#1f77b4", "tflite": "#d62728"}


def plots(report: Report) -> dict[str, bytes]:
    """PNG pictures by name; those without figures are absent."""
    found = {}
    for name, label, value in (
        ("size_accuracy", "size [MB]", lambda m: m.bytes / 1e6),
        ("latency_accuracy", "latency, one row, median [ms]", lambda m: m.latency_ms and m.latency_ms.p50),
    ):
        picture = _scatter(report.artifacts, label, value)
        if picture is not None:
            found[name] = picture
    return found


def _scatter(
    artifacts: list[Measurement], label: str, value: Callable[[Measurement], float | None]
) -> bytes | None:
    from matplotlib.figure import Figure  # pyplot would keep global state and choose a display

    points = [(x, next(iter(m.quality.values())) * 100, m) for m in artifacts if m.quality and (x := value(m))]
    if not points:
        return None
    figure = Figure(figsize=(7.2, 4.2), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for index, (x, y, m) in enumerate(points):
        axes.scatter([x], [y], color=_COLORS.get(m.format, "gray"), s=42, zorder=3)
        above = index % 2 == 0
        axes.annotate(m.name, (x, y), xytext=(5, 5 if above else -10), textcoords="offset points", fontsize=7.5)
    axes.set_xscale("log")
    axes.set_xlabel(label + ", log scale")
    axes.set_ylabel(f"{next(iter(points[0][2].quality or {'quality': 0}))} on held-out data [%]")
    axes.margins(x=0.15, y=0.15)
    axes.grid(alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
