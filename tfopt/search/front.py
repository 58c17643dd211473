"""What a search found: points, the front of those that no other beats, a table and a picture."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfopt.errors import InputError
from tfopt.measure.results import Measurement
from tfopt.report.html import rows_html
from tfopt.report.plots import INK, as_png, canvas, front_line, legend, log_scale, standard_error


@dataclasses.dataclass(frozen=True)
class Point:
    """One measured model.

    Attributes:
        name: of its artifact in the report.
        accuracy: on held-out data, in [0, 1].
        bytes, packed_bytes: of the artifact.
        latency_ms: median for one row.
        artifact: the file.
        recipe: the recipe that makes it; None for the plain integer file.
        choices: what was done, in words.
    """

    name: str
    accuracy: float
    bytes: int
    packed_bytes: int
    latency_ms: float
    artifact: Path
    recipe: Path | None
    choices: str

    def beats(self, other: "Point") -> bool:
        """Whether it is as good in everything and better in something."""
        mine = (self.accuracy, -self.packed_bytes, -self.latency_ms)
        theirs = (other.accuracy, -other.packed_bytes, -other.latency_ms)
        return mine != theirs and all(a >= b for a, b in zip(mine, theirs, strict=True))


@dataclasses.dataclass(frozen=True, repr=False)
class SearchResult:
    """What a search ends with.

    Attributes:
        points: everything measured, the largest first.
        front: those that no other point beats in accuracy, packed bytes and latency together.
        chosen: the point that meets the budget; None in files of a search that found none.
        baseline: the float SavedModel.
        rows: of the held-out data; None if it is not known.
    """

    points: tuple[Point, ...]
    front: tuple[Point, ...]
    chosen: Point | None
    baseline: Measurement
    rows: int | None = None

    def __repr__(self) -> str:
        chosen = "none chosen" if self.chosen is None else f"chosen {self.chosen.name!r}: {self.chosen.choices}"
        return f"SearchResult({len(self.points)} points, {len(self.front)} on the front, {chosen})"

    def _repr_html_(self) -> str:
        head, *rows = self._rows()
        return rows_html(head, rows)

    def _rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = [("", "point", "accuracy", "bytes", "packed", "latency", "choices")]
        for p in self.points:
            mark = ("*" if p in self.front else " ") + (">" if p == self.chosen else " ")
            figures = (f"{p.accuracy:.2%}", f"{p.bytes:,}", f"{p.packed_bytes:,}", f"{p.latency_ms:.3f} ms")
            rows.append((mark, p.name, *figures, p.choices))
        return rows

    def text(self) -> str:
        """A table of all points; `*` marks the front, `>` the chosen one."""
        rows = self._rows()
        widths = [max(len(row[i]) for row in rows) for i in range(6)]
        return "\n".join("  ".join([*(c.ljust(w) for c, w in zip(r, widths, strict=False)), r[6]]) for r in rows)

    def sentences(self) -> list[str]:
        """What was done at each point, the chosen one first."""
        lines = [f"{p.name}: {p.choices}." for p in self.points if p != self.chosen]
        return ([] if self.chosen is None else [f"Chosen is {self.chosen.name}: {self.chosen.choices}."]) + lines

    def picture(self) -> bytes:
        """The front as a PNG: accuracy against packed bytes and against latency."""
        columns = (
            ("packed size [MB]", [p.packed_bytes / 1e6 for p in self.points]),
            ("latency, one row, median [ms]", [p.latency_ms for p in self.points]),
        )
        figure, panels = canvas(2, (11, 4.4), sharey=True)
        for axes, (label, values) in zip(panels, columns, strict=True):
            self._draw(axes, values)
            log_scale(axes, label)
        panels[0].set_ylabel("accuracy on held-out data [%]" + (", one standard error" if self.rows else ""))
        legend(figure, panels[0])
        return as_png(figure)

    def _draw(self, axes: Any, values: Sequence[float]) -> None:
        """The points by number, as names would cover each other, and what each size or time can reach."""
        front_line(axes, values, [100 * point.accuracy for point in self.points])
        for number, (x, point) in enumerate(zip(values, self.points, strict=True), 1):
            taken, kept = point == self.chosen, point in self.front
            axes.scatter(
                [x], [100 * point.accuracy], s=110 if taken else 40, marker="*" if taken else "o", zorder=3,
                color="#d62728" if taken else "#1f77b4" if kept else "#bbbbbb",
                label=f"{number}  {point.name}{', chosen' if taken else ''}",
            )  # fmt: skip
            error = standard_error(point.accuracy, self.rows)
            if error is not None:
                axes.errorbar([x], [100 * point.accuracy], yerr=[100 * error], color=INK, lw=0.7, capsize=2)
            axes.annotate(
                str(number), (x, 100 * point.accuracy), xytext=(5, 6 if number % 2 else -12),
                textcoords="offset points", fontsize=8, color=INK,
            )  # fmt: skip


def front_of(points: Sequence[Point]) -> tuple[Point, ...]:
    """The points that no other beats."""
    return tuple(p for p in points if not any(other.beats(p) for other in points))


def choose(points: Sequence[Point], full: float, budget: str, limit: float) -> Point:
    """The most accurate point within a budget; for "max_loss" the one with the least bytes times latency.

    Args:
        points: one or more.
        full: accuracy of the float model, in [0, 1].
        budget: "max_bytes", "max_packed_bytes", "max_latency_ms" or "max_loss" (in percent).
        limit: of it.

    Raises:
        InputError: none is within it; the smallest budget that one meets is named.
    """

    def spent(p: Point) -> float:
        return 100 * (full - p.accuracy) if budget == "max_loss" else float(getattr(p, budget.removeprefix("max_")))

    within = [p for p in points if spent(p) <= limit + 1e-9]
    if not within:
        least = min(points, key=spent)
        raise InputError(
            f"no point meets {budget} {limit:g}; the smallest that one meets is {spent(least):.6g} "
            f"({least.name}, accuracy {least.accuracy:.2%}: {least.choices})"
        )
    if budget == "max_loss":
        return min(within, key=lambda p: p.packed_bytes * p.latency_ms)
    return max(within, key=lambda p: (p.accuracy, -p.packed_bytes))
