"""All that was written, measured in turns beside the original; the file to ship, and a sentence about it."""

import dataclasses
import functools
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfopt._base.files import replacing, sha256, write_bytes, write_json, write_text
from tfopt._base.members import FACTS, TOKENIZER
from tfopt._keras import extras
from tfopt._keras.loading import load_model
from tfopt.compress.vocabulary import all_rows
from tfopt.data.readers.texts import Texts
from tfopt.errors import InputError, VerificationError
from tfopt.export.export import export
from tfopt.measure.child import measure_in_child
from tfopt.measure.findings import findings
from tfopt.measure.results import Measurement
from tfopt.numerics.metrics import Scored, agreement
from tfopt.recipe import Recipe
from tfopt.recipe.sections import ExportSection
from tfopt.report import Report, machine_info
from tfopt.report.html import page
from tfopt.report.plots import curves_of
from tfopt.run.named import told
from tfopt.run.pipeline import Built
from tfopt.search.front import Point, SearchResult, choose, front_of
from tfopt.tasks import task_of
from tfopt.tasks.classification import KEPT, ClassificationTask

Log = Callable[[str], None]
ORIGINAL = "baseline"
_FLOAT, _INT8 = "baseline_tflite", "baseline_tflite_dynamic_int8"
_FILE, _ROWS = "model.tflite", 64
_BUDGETS = {"accuracy": "max_loss"}  # the goal's name in `choose`, where it is another


@dataclasses.dataclass(frozen=True, repr=False)
class Optimized:
    """What an optimization ends with.

    Attributes:
        file: the one to ship.
        sentence: what it is, in figures.
        faster, smaller: times the float SavedModel of the original, by latency and by bytes.
        share: of the original's accuracy.
        report: everything that was measured.
        result: the same as points, with the front.
    """

    file: Path
    sentence: str
    faster: float
    smaller: float
    share: float
    report: Report
    result: SearchResult

    def __repr__(self) -> str:
        return f"Optimized({self.sentence!r})"

    def _repr_html_(self) -> str:
        return self.report._repr_html_()


@dataclasses.dataclass(frozen=True)
class Candidates:
    """What there is to choose from.

    Attributes:
        recipe: of the original.
        texts: held out.
        original, students: what was built; None where there was no time or nothing to take out.
        says: name of a student -> what was done.
    """

    recipe: Recipe
    texts: Texts
    original: Built
    students: Built | None
    says: dict[str, str]

    def artifacts(self, folder: Path, log: Log) -> dict[str, Path]:
        """Name -> artifact; the float SavedModel of the original is the first."""
        run = self.original.folder
        found = {ORIGINAL: run / "baseline" / "saved_model"}
        found |= {n: run / n / _FILE for n in (_FLOAT, _INT8) if n not in self.original.refused}
        if self.students is None:
            return found
        for path in sorted(self.students.folder.glob(f"*_tflite_*/{_FILE}")):
            name, artifact = path.parent.name.partition("_tflite_")[0], path.parent.name
            if name in self.says and artifact not in self.refused:
                found[name] = path
        return found | self._with_all_words(folder, log)

    def _with_all_words(self, folder: Path, log: Log) -> dict[str, Path]:
        """Students of a cut vocabulary with the original's rows for the tokens that the training texts lack."""
        if self.students is None or not self._kept.exists():
            return {}
        original, found = load_model(self._model), {}
        for name in self.says:
            student = self.students.folder / name / "model.keras"
            path = folder / "runs" / f"all-words-{sha256(student)[:12]}" / _FILE
            found[f"{name}-all-words"] = path
            if path.exists():
                continue
            try:
                model = all_rows(load_model(student), original, np.load(self._kept))
            except InputError:  # its table is split
                del found[f"{name}-all-words"]
                continue
            log(f"[export {name} with all words]")
            try:
                self._export(model, path)
            except VerificationError as error:
                log(f"{name} with all words is left out: {error}")
                del found[f"{name}-all-words"]
        return found

    @property
    def refused(self) -> dict[str, str]:
        """Artifact that did not pass verification -> why."""
        return self.original.refused | (self.students.refused if self.students is not None else {})

    @property
    def _model(self) -> Path:
        return self.original.folder / "baseline" / "model.keras"

    @property
    def _kept(self) -> Path:
        """Ids of the tokens that a cut vocabulary has."""
        return (self.students or self.original).folder / "data" / KEPT

    def _export(self, model: Any, path: Path) -> None:
        task = task_of(self.recipe, self.original.folder / "data")
        members = extras.of(load_model(self._model))
        for member in (FACTS, TOKENIZER):
            extras.keep(model, member, members[member])
        section = ExportSection(format="tflite", quantization="dynamic_int8")
        path.parent.mkdir(parents=True, exist_ok=True)
        export(
            model, path, quantization="dynamic_int8", representative=task.samples(), lengths=task.lengths(section),
            in_place=True,
        )  # fmt: skip

    def choices(self, name: str) -> str:
        """What was done, in words."""
        student = name.removesuffix("-all-words")
        if student not in self.says:
            return "float32" if name == _FLOAT else "8 bits everywhere"
        words = [self.says[student]] + ["8 bits"] * ("bits" not in self.says[student])
        if self._kept.exists() and name == student:
            words.append("vocabulary of the texts")
        return "; ".join(words)

    def timed_inputs(self) -> Any:
        """Inputs that all of them take."""
        run = (self.students or self.original).folder
        task = task_of(Recipe.load(run / "recipe.toml"), run / "data")
        assert isinstance(task, ClassificationTask)
        return task.timed_inputs()


def ship(
    found: Candidates, out: Path, *, goal: tuple[str, float], rounds: int, threads: int | None, log: Log
) -> Optimized:
    """Measures, chooses and writes; arguments as for `search.optimize`."""
    artifacts = found.artifacts(out, log)
    measured = measure_in_child(
        artifacts, data=None, text=None, window=None, score=functools.partial(score, found.texts),
        inputs=found.timed_inputs(), threads=threads, rounds=rounds, seconds=1.0, memory=True, errors={}, log=log,
    )  # fmt: skip
    points = tuple(_point(m, found.choices(m.name)) for m in measured[1:])
    base = measured[0]
    full = (base.quality or {})["accuracy"]
    name, value = goal
    limit = 100 * full * (1 - value) if name == "accuracy" else value
    result = SearchResult(points, front_of(points), None, baseline=base, rows=len(found.texts.texts))
    try:
        chosen = choose(points, full, _BUDGETS.get(name, name), limit=limit)
    except InputError as error:
        _write(out, found, measured, result=result, sentence="No file reaches the goal.")
        if name != "accuracy":
            raise
        best = max(points, key=lambda p: p.accuracy)
        raise InputError(
            f"no file keeps {value:.4g} of the accuracy; the nearest keeps {best.accuracy / full:.4g} ({best.name})"
        ) from error
    result = dataclasses.replace(result, chosen=chosen)
    with replacing(out / _FILE) as temporary:
        shutil.copyfile(chosen.artifact, temporary)
    m = next(m for m in measured if m.name == chosen.name)
    sentence = _sentence(out / _FILE, m, base, rows=len(found.texts.texts))
    report = _write(out, found, measured, result=result, sentence=sentence)
    return Optimized(
        out / _FILE, sentence, faster=m.speedup or 1.0, smaller=m.shrink or 1.0,
        share=chosen.accuracy / full if full else 1.0, report=report, result=result,
    )  # fmt: skip


def score(texts: Texts, predictor: Any) -> Scored:
    """The share of texts that an artifact gives their label, and its labels."""
    answers = np.empty(len(texts.texts), object)
    order = sorted(range(len(texts.texts)), key=lambda i: len(texts.texts[i]))
    for start in range(0, len(order), _ROWS):
        part = order[start : start + _ROWS]
        answers[part] = predictor.predict([texts.texts[i] for i in part])["label"]
    found, true = answers.tolist(), texts.labels or []
    return Scored({"accuracy": agreement(found, true)}, found, true)


def _point(m: Measurement, choices: str) -> Point:
    assert m.latency_ms is not None and m.quality is not None
    return Point(
        m.name, m.quality["accuracy"], m.bytes, packed_bytes=m.bytes_packed or m.bytes, latency_ms=m.latency_ms.p50,
        artifact=Path(m.path), recipe=None, choices=choices,
    )  # fmt: skip


def _sentence(file: Path, m: Measurement, base: Measurement, rows: int) -> str:
    accuracy, full = (found.quality["accuracy"] if found.quality else 0.0 for found in (m, base))
    error = 100 * (accuracy * (1 - accuracy) / rows) ** 0.5
    return (
        f"{file.name}: {m.speedup or 1:.1f} times faster and {m.shrink or 1:.1f} times smaller than the float "
        f"SavedModel of the original, with {accuracy / full:.1%} of its accuracy ({accuracy:.2%} of {full:.2%}; "
        f"one standard error on {rows} texts is {error:.1f} points)."
    )


def _write(
    out: Path, found: Candidates, measured: Sequence[Measurement], result: SearchResult, sentence: str
) -> Report:
    runs = [run for run in (found.original, found.students) if run is not None]
    recipe = Recipe.load(runs[-1].folder / "recipe.toml")
    data = runs[0].data
    artifacts = [
        dataclasses.replace(
            told(m, None, lambda rows: {i: found.texts.texts[i] for i in rows}),
            path=str(Path(m.path).relative_to(out)),
        )
        for m in measured
    ]
    refused = [f"{name} is left out: {why}" for name, why in found.refused.items()]
    notes = [
        sentence, *result.sentences(), *refused, *runs[0].notes,
        *findings(artifacts, rows=len(found.texts.texts), majority=data.get("validation_majority")),
    ]  # fmt: skip
    steps = [step for run in runs for step in run.steps]
    curves = {name: found for run in reversed(runs) for name, found in run.curves.items() if found}
    report = Report(
        machine_info(), {**recipe.to_dict(), "name": "optimize"}, artifacts, steps=steps, data=data,
        notes=list(dict.fromkeys(notes)), curves=curves,
        shipped=None if result.chosen is None else result.chosen.name,
    )  # fmt: skip
    picture = result.picture()
    write_bytes(out / "front.png", picture)
    report.save(out / "report.json")
    write_text(out / "report.html", page(report, {"front": picture, **curves_of(report)}, recipe.to_toml()))
    write_json(out / "front.json", {
        "chosen": result.chosen and result.chosen.name, "front": [p.name for p in result.front],
        "points": [{**dataclasses.asdict(p), "artifact": str(p.artifact)} for p in result.points],
    })  # fmt: skip
    return report
