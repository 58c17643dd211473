"""What a search found: points, the front of those that no other beats, a table and a picture."""

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

from tfopt.errors import InputError
from tfopt.measure.results import Measurement


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


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """What a search ends with.

    Attributes:
        points: everything measured, the largest first.
        front: those that no other point beats in accuracy, packed bytes and latency together.
        chosen: the point that meets the budget; None in files of a search that found none.
        baseline: the float SavedModel.
    """

    points: tuple[Point, ...]
    front: tuple[Point, ...]
    chosen: Point | None
    baseline: Measurement

    def text(self) -> str:
        """A table of all points; `*` marks the front, `>` the chosen one."""
        rows = [("", "point", "accuracy", "bytes", "packed", "latency", "choices")]
        for p in self.points:
            mark = ("*" if p in self.front else " ") + (">" if p == self.chosen else " ")
            figures = (f"{p.accuracy:.2%}", f"{p.bytes:,}", f"{p.packed_bytes:,}", f"{p.latency_ms:.3f} ms")
            rows.append((mark, p.name, *figures, p.choices))
        widths = [max(len(row[i]) for row in rows) for i in range(6)]
        return "\n".join("  ".join([*(c.ljust(w) for c, w in zip(r, widths, strict=False)), r[6]]) for r in rows)

    def picture(self) -> bytes:
        """The front as a PNG: accuracy against packed bytes and against latency."""
        from matplotlib.figure import Figure  # pyplot would keep global state and choose a display

        figure = Figure(figsize=(9, 4), dpi=110, layout="constrained")
        columns = (
            ("packed size [MB]", [p.packed_bytes / 1e6 for p in self.points]),
            ("latency, one row, median [ms]", [p.latency_ms for p in self.points]),
        )
        for axes, (label, values) in zip(figure.subplots(1, 2, sharey=True), columns, strict=True):
            for point, x in zip(self.points, values, strict=True):
                kept, taken = point in self.front, point == self.chosen
                axes.scatter(
                    [x], [100 * point.accuracy], s=80 if taken else 40, zorder=3, marker="*" if taken else "o",
                    color="#d62728" if taken else "#1f77b4" if kept else "#bbbbbb",
                )  # fmt: skip
                axes.annotate(point.name, (x, 100 * point.accuracy), xytext=(4, 4), textcoords="offset points",
                              fontsize=7)  # fmt: skip
            axes.set_xscale("log")
            axes.set_xlabel(f"{label}, log scale")
            axes.grid(alpha=0.3)
        figure.axes[0].set_ylabel("accuracy on held-out data [%]")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        return buffer.getvalue()


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
