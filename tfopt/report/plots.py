"""Pictures of a report: accuracy against size and latency, and how trainings went.

They have no background, and lines and letters in a grey that can be read on white and on black.
"""

import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tfopt.measure.results import Measurement
from tfopt.report.report import Report

_COLORS = {"keras": "#a9746b", "saved_model": "#3d8fd1", "tflite": "#e0524f"}
INK = "#808080"
_LINES = ("#3d8fd1", "#e0524f", "#4aa564", "#b07cc6", "#d59a2f", "#4fb5b5", "#a9746b", "#d16ba5")


def plots(report: Report) -> dict[str, bytes]:
    """PNG pictures by name; those without figures are absent."""
    found = {}
    rows = report.data.get("validation_records")
    for name, label, value in (
        ("size_accuracy", "size [MB]", lambda m: m.bytes / 1e6),
        ("latency_accuracy", "latency, one row, median [ms]", lambda m: m.latency_ms and m.latency_ms.p50),
    ):
        picture = _scatter(report.artifacts, label, value, rows=rows)
        if picture is not None:
            found[name] = picture
    return found | curves_of(report)


def curves_of(report: Report) -> dict[str, bytes]:
    """The picture of the trainings, if there were any."""
    return {"training": _curves(report.curves)} if report.curves else {}


def canvas(columns: int, size: tuple[float, float], **settings: Any) -> tuple[Any, list[Any]]:
    """An empty picture and its axes; pyplot would keep global state and choose a display."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=110, layout="constrained")
    figure.patch.set_alpha(0)
    axes = list(figure.subplots(1, columns, squeeze=False, **settings)[0])
    for each in axes:
        each.patch.set_alpha(0)
        each.grid(alpha=0.3, color=INK)
        each.tick_params(colors=INK, which="both")
        for side, spine in each.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(INK)
        for label in (each.xaxis.label, each.yaxis.label, each.title):
            label.set_color(INK)
    return figure, axes


def log_scale(axes: Any, label: str) -> None:
    """The horizontal axis, in numbers that people write."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, position: f"{value:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"{label}, log scale")
    axes.margins(x=0.12, y=0.12)


def legend(figure: Any, axes: Any) -> None:
    """Beside the picture, where it covers nothing."""
    handles, labels = axes.get_legend_handles_labels()
    shown = figure.legend(
        handles, labels, loc="outside right upper", fontsize=8, frameon=False, handletextpad=0.4, labelcolor=INK
    )
    shown.set_in_layout(True)


def as_png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def front_line(axes: Any, xs: Sequence[float], ys: Sequence[float]) -> None:
    """What each size or time can reach: nothing that is better lies to the left of it."""
    placed = sorted(zip(xs, ys, strict=True))
    best = list(itertools.accumulate((y for _, y in placed), max))
    axes.step([x for x, _ in placed], best, where="post", color=INK, lw=1, zorder=2)


def standard_error(share: float, rows: int | None) -> float | None:
    """Of a share that was found on so many rows."""
    return None if not rows else (share * (1 - share) / rows) ** 0.5


def _scatter(
    artifacts: list[Measurement], label: str, value: Callable[[Measurement], float | None], rows: int | None
) -> bytes | None:
    points = [(x, next(iter(m.quality.values())), m) for m in artifacts if m.quality and (x := value(m))]
    if not points:
        return None
    figure, (axes,) = canvas(1, (8.4, 4.2))
    metric = next(iter(points[0][2].quality or {"quality": 0}))
    for number, (x, y, m) in enumerate(points, 1):  # names beside the points would cover each other
        error = standard_error(y, rows) if metric == "accuracy" else None
        axes.errorbar(
            [x], [100 * y], yerr=None if error is None else [100 * error], color=_COLORS.get(m.format, INK),
            fmt="o", ms=6, lw=1, capsize=2, zorder=3, label=f"{number}  {m.name}",
        )  # fmt: skip
        step = sum(abs(x - o) < 0.03 * x and abs(y - level) < 5e-4 for o, level, _ in points[: number - 1])
        axes.annotate(
            str(number), (x, 100 * y), xytext=(5 + 9 * step, 6), textcoords="offset points", fontsize=8, color=INK
        )
    front_line(axes, [x for x, _, _ in points], [100 * y for _, y, _ in points])
    log_scale(axes, label)
    bars = ", one standard error" if metric == "accuracy" and rows else ""
    axes.set_ylabel(f"{metric.replace('_', ' ')} on held-out data [%]{bars}")
    legend(figure, axes)
    return as_png(figure)


def _curves(curves: Mapping[str, Mapping[str, Sequence[float]]]) -> bytes:
    """Losses of the training data and the held-out ones, and the first metric there is."""
    names = (n for some in curves.values() for n in some if len(some[n]) > 1)
    metric = next((n for n in names if n.startswith("val_") and "loss" not in n), None)
    figure, panels = canvas(1 if metric is None else 2, (8.4 if metric is None else 11, 3.6))
    for color, (name, values) in zip(itertools.cycle(_LINES), curves.items(), strict=False):
        for key, style in (("loss", "--"), ("val_loss", "-")):
            if key in values:
                where = "held-out" if key == "val_loss" else "training"
                epochs = range(1, len(values[key]) + 1)
                panels[0].plot(epochs, values[key], style, color=color, marker="o", ms=3, label=f"{name}, {where}")
        if metric is not None and metric in values:
            panels[1].plot(range(1, len(values[metric]) + 1), values[metric], color=color, marker="o", ms=3)
    panels[0].set_yscale("log")
    for axes, label in zip(panels, ("loss, log scale", (metric or "").removeprefix("val_")), strict=False):
        axes.set_xlabel("epoch")
        axes.set_ylabel(label if axes is panels[0] else f"{label} on held-out data")
        axes.xaxis.get_major_locator().set_params(integer=True)
    legend(figure, panels[0])
    return as_png(figure)
