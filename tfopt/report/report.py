"""The report of a run: what it holds, and its JSON form."""

import dataclasses
from pathlib import Path
from typing import Any

from tfopt._base.files import existing, write_json
from tfopt._base.foreign import read_json
from tfopt.errors import DataError
from tfopt.measure.results import Measurement

SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class Step:
    """A step of the pipeline and the seconds it took."""

    name: str
    seconds: float


@dataclasses.dataclass(frozen=True, repr=False)
class Report:
    """Everything a run found.

    Attributes:
        machine: what it ran on, see `machine_info`.
        recipe: the recipe as plain values.
        artifacts: one measurement per artifact; the first is the baseline.
        steps: the pipeline's steps in order.
        data: counts of the data, for example texts that were too long.
        notes: plain sentences, for example where a technique brought nothing.
        shipped: name of the artifact that is the one to ship, where one was chosen; the first note says it.
        curves: model -> name of a loss or metric -> its value after each epoch.
    """

    machine: dict[str, Any]
    recipe: dict[str, Any]
    artifacts: list[Measurement]
    steps: list[Step]
    data: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    shipped: str | None = None
    curves: dict[str, dict[str, list[float]]] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        names, more = ", ".join(m.name for m in self.artifacts[:6]), ", ..." if len(self.artifacts) > 6 else ""
        return f"Report({self.recipe.get('name', 'comparison')!r}, {len(self.artifacts)} artifacts: {names}{more})"

    @property
    def baseline(self) -> Measurement:
        return self.artifacts[0]

    def artifact(self, name: str) -> Measurement:
        """The measurement of that name; KeyError if there is none."""
        return {m.name: m for m in self.artifacts}[name]

    def to_dict(self) -> dict[str, Any]:
        """Plain values in the order of the schema; what was not measured is absent."""
        values = dataclasses.asdict(self)
        values["artifacts"] = [_without_none(a) for a in values["artifacts"]]
        return {"schema": SCHEMA, **values}

    def save(self, path: str | Path) -> Path:
        """Writes `report.json`."""
        return write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> "Report":
        """Reads what `save` wrote.

        Raises:
            MissingFileError: no such file.
            DataError: it is no report, or one of another schema.
        """
        path = existing(path, "report")
        try:
            values = read_json(path, "report")
            schema = values.pop("schema")
            if schema != SCHEMA:
                raise DataError(f"{path} has report schema {schema}; this version reads {SCHEMA}")
            values["artifacts"] = [Measurement.from_dict(a) for a in values["artifacts"]]
            values["steps"] = [Step(**s) for s in values["steps"]]
            return cls(**values)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path} is not a report: {error}") from error

    def _repr_html_(self) -> str:
        from tfopt.report.html import table_html

        return table_html(self)


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
