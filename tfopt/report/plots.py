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
    from matplotlib.ticker import LogLocator, NullFormatter

    points = [(x, next(iter(m.quality.values())) * 100, m) for m in artifacts if m.quality and (x := value(m))]
    if not points:
        return None
    figure = Figure(figsize=(8.4, 4.2), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for number, (x, y, m) in enumerate(points, 1):  # names beside the points would cover each other
        axes.scatter([x], [y], color=_COLORS.get(m.format, "gray"), s=46, zorder=3, label=f"{number}  {m.name}")
        step = sum(abs(x - other) < 0.03 * x and abs(y - level) < 0.05 for other, level, _ in points[: number - 1])
        axes.annotate(str(number), (x, y), xytext=(5 + 9 * step, 6), textcoords="offset points", fontsize=8)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, position: f"{value:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(label + ", log scale")
    metric = next(iter(points[0][2].quality or {"quality": 0})).replace("_", " ")
    axes.set_ylabel(f"{metric} on held-out data [%]")
    axes.margins(x=0.12, y=0.12)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False, handletextpad=0.2)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
