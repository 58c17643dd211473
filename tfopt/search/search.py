"""Finds what to do to each place of a model so that a budget is met.

A table says what every option saves and loses alone, as Dong et al., "HAWQ", https://arxiv.org/abs/1905.03696, do
for bits. Options are taken by loss per saving; plans along that way become variants of one recipe, which is run:
every figure is measured on the exported artifacts, in turns in one process.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tfopt._base.files import existing, replacing, sha256, tree_digest, write_bytes, write_json, write_text
from tfopt._keras import keras_api
from tfopt._keras.keras_io import inputs_of
from tfopt._keras.loading import load_model
from tfopt.compress.base import Option
from tfopt.compress.low_rank import splittable
from tfopt.data import batches as batching
from tfopt.data.records.manifest import read_manifest
from tfopt.errors import InputError
from tfopt.recipe import Recipe
from tfopt.report import Report
from tfopt.report.html import page
from tfopt.report.plots import plots
from tfopt.run import pipeline
from tfopt.search import plan as planning
from tfopt.search.front import Point, SearchResult, choose, front_of
from tfopt.search.options import matrices_of, options_of
from tfopt.search.plan import Candidate
from tfopt.search.table import sensitivity
from tfopt.structure.blocks import blocks_of
from tfopt.structure.cut import renaming
from tfopt.structure.groups import structure_of
from tfopt.tasks.classification import check_fits

Log = Callable[[str], None]
_MEASURES: dict[str, planning.Measure] = {
    "max_bytes": "bytes", "max_packed_bytes": "packed", "max_latency_ms": "latency", "max_loss": "both",
}  # fmt: skip
_LEAST_LOSS, _MOST_LOSS = 1e-3, 1.0  # predicted change of the outputs at the first point and the last
_BATCH, _BATCHES = 32, 32


def search(
    model: Any,
    data: str | Path,
    *,
    out: str | Path,
    max_bytes: int | None = None,
    max_packed_bytes: int | None = None,
    max_latency_ms: float | None = None,
    max_loss: float | None = None,
    points: int = 8,
    epochs: int = 0,
    samples: int = 64,
    rounds: int = 50,
    threads: int | None = None,
    log: Log = pipeline.to_stderr,
) -> SearchResult:
    """Searches over layers, pooling, heads, neurons, channels, width, ranks, zeros and bits.

    It goes on where an interrupted search stopped.

    Args:
        model: a trained classifier of either generation, or its `.keras` file; it is not changed.
        data: packed folder with splits "train" and "validation", such as the `data` of a run.
        out: folder for the table, runs with every point, a recipe per point, `front.png`, `.txt` and `.json`, and a
            `report.html`.
        max_bytes: budget: most bytes of the artifact; the most accurate point within it is chosen.
        max_packed_bytes: budget: likewise of the packed artifact.
        max_latency_ms: budget: likewise, median milliseconds for one row.
        max_loss: budget: most points of accuracy (percent) to lose against the float model; then the point with the
            least product of packed bytes and latency is chosen.
        points: how many plans to build and measure, 2 or more.
        epochs: of training for each, with the float model's answers; without it everything is done after training.
        samples: texts that the table is measured on.
        rounds: timed calls of each artifact.
        threads: of the runtimes.
        log: told what is being done.

    Raises:
        InputError: not exactly one budget, one that no point meets (the smallest that can is named), or data that
            does not fit the model.
    """
    budgets = {"max_bytes": max_bytes, "max_packed_bytes": max_packed_bytes, "max_latency_ms": max_latency_ms,
               "max_loss": max_loss}  # fmt: skip
    given = {name: value for name, value in budgets.items() if value is not None}
    if len(given) != 1:
        raise InputError(f"give exactly one of {', '.join(budgets)}, got {', '.join(given) or 'none'}")
    ((budget, limit),) = given.items()
    if (limit <= 0 and budget != "max_loss") or limit < 0:
        raise InputError(f"{budget} must be above 0, got {limit}")
    if points < 2:
        raise InputError(f"points must be 2 or more, got {points}")
    out, data = Path(out).resolve(), existing(data, "packed data").resolve()
    loaded = load_model(model) if isinstance(model, str | Path) else keras_api.check_model(model)
    longest = max(read_manifest(data, split).max_length for split in ("train", "validation"))
    check_fits(loaded, data, longest)
    work = _Search(loaded, data, out, longest=longest, log=log)
    plans = work.plans(_MEASURES[budget], limit if budget != "max_latency_ms" else None, points, samples=samples)
    report, folder = work.run(plans, epochs, rounds, threads)
    found = work.points(plans, report, folder)
    rows = report.data.get("validation_records")
    full = (report.artifact("baseline").quality or {"accuracy": 0.0})["accuracy"]
    try:
        chosen = choose(found, full, budget, limit=limit)
    except InputError:
        _write(
            out, SearchResult(found, front_of(found), None, baseline=report.artifact("baseline"), rows=rows), given,
            report=report,
        )  # fmt: skip
        raise
    result = SearchResult(found, front_of(found), chosen, baseline=report.artifact("baseline"), rows=rows)
    _write(out, result, given, report=report)
    return result


def _write(out: Path, result: SearchResult, budget: dict[str, Any], report: Report) -> None:
    """The front as a picture, a table and JSON, and the report of everything that was measured."""
    picture = result.picture()
    whole = dataclasses.replace(report, notes=[*result.sentences(), *report.notes])
    whole.save(out / "report.json")
    recipe = Recipe.model_validate(report.recipe).to_toml()
    write_text(out / "report.html", page(whole, {"front": picture, **plots(whole)}, recipe))
    write_bytes(out / "front.png", picture)
    write_text(out / "front.txt", result.text() + "\n")
    write_json(out / "front.json", {
        "budget": budget, "chosen": result.chosen and result.chosen.name, "front": [p.name for p in result.front],
        "points": [
            {**dataclasses.asdict(p), "artifact": str(p.artifact), "recipe": p.recipe and str(p.recipe)}
            for p in result.points
        ],
    })  # fmt: skip


class _Search:
    def __init__(self, model: Any, data: Path, out: Path, longest: int, log: Log) -> None:
        self._model, self._data, self._out, self._longest, self._log = model, data, out, longest, log
        out.mkdir(parents=True, exist_ok=True)
        self._file = out / "model.keras"
        if not self._file.exists() or not _same(load_model(self._file), model):
            keras_api.save_model(model, self._file)
        self._split = {f.path: _factors(f) for f in splittable(model)[0]}
        self._matrices, self._structure = matrices_of(model), structure_of(model)
        self._blocks = blocks_of(model, self._structure)

    def plans(
        self, measure: planning.Measure, limit: float | None, count: int, samples: int
    ) -> dict[str, Candidate]:
        """Plans to measure, by name."""
        structure = self._structure
        given = batching.samples(self._data, samples, split="train", balanced=True)
        inputs = {name: given[name] for name in inputs_of(self._model).specs if name in given}
        batches = batching.batches(self._data, _BATCH, split="train").take(_BATCHES)
        options, table = options_of(self._model), self._out / "sensitivity.json"
        losses = sensitivity(
            self._model, structure, options, samples=inputs, data=batches, path=table, log=self._log
        )
        way = planning.path_of(self._matrices, options, losses, measure=measure)[1:]
        if not way:
            raise InputError(f"nothing in model {self._model.name!r} can be made smaller")
        chosen = []
        for i in range(count):
            most = _LEAST_LOSS * (_MOST_LOSS / _LEAST_LOSS) ** (i / (count - 1))
            chosen.append(next((plan for plan in reversed(way) if plan.loss <= most), way[0]))
        if limit is not None and measure in ("bytes", "packed"):
            # Estimates leave scales and the graph out, so a plan beyond the first that may do comes as well.
            sizes = [planning.costs(self._matrices, p)[measure] for p in way]
            meets = [i for i, size in enumerate(sizes) if size <= limit]
            first = meets[0] if meets else len(way) - 1
            below = next((i for i in meets if sizes[i] <= 0.9 * limit), len(way) - 1)
            chosen += [way[first], way[below]]
        distinct = sorted(dict.fromkeys(chosen), key=lambda p: p.loss)
        return {f"p{i}": plan for i, plan in enumerate(distinct, 1)}

    def run(
        self, plans: dict[str, Candidate], epochs: int, rounds: int, threads: int | None
    ) -> tuple[Report, Path]:
        """Builds, trains, exports and measures all of them in one run; returns its report and folder.

        Runs of other plans, models or data stay where they are, so that a search can come back to them.
        """
        recipe = self._recipe(plans, epochs, rounds, threads=threads)
        digest = hashlib.sha256(recipe.to_toml().encode())
        digest.update(sha256(self._file).encode() + tree_digest(self._data).encode())
        folder = self._out / "runs" / digest.hexdigest()[:12]
        report = pipeline.run(recipe, folder, resume=folder.exists(), log=self._log)
        with replacing(self._out / "points") as temporary:
            temporary.mkdir()
            for name, plan in plans.items():
                alone = self._recipe({name: plan}, epochs, rounds, threads=threads)
                (temporary / f"{name}.toml").write_text(alone.to_toml(), "utf-8")
        return report, folder

    def _recipe(self, plans: dict[str, Candidate], epochs: int, rounds: int, threads: int | None) -> Recipe:
        exports: list[dict[str, Any]] = [{"format": "tflite", "quantization": "dynamic_int8", "of": ["baseline"]}]
        for name, plan in plans.items():
            exports.append({
                "format": "tflite", "quantization": "dynamic_int8", "of": [name],
                "bits": planning.bits(plan, self._split, self._named(plan)),
            })  # fmt: skip
        return Recipe.model_validate({
            "schema": 1, "name": "search", "generation": keras_api.generation_of(self._model),
            "data": {"source": "packed", "folder": str(self._data), "max_length": self._longest},
            "model": {"kind": "keras", "file": str(self._file)}, "train": {"epochs": 0},
            "variants": [
                planning.variant(plan, name, self._split, epochs=epochs, named=self._named(plan))
                for name, plan in plans.items()
            ],
            "exports": exports,
            "measure": {"rounds": rounds, **({} if threads is None else {"threads": threads})},
        })  # fmt: skip

    def _named(self, plan: Candidate) -> Callable[[str], str]:
        """Names as they are once the plan's layers are gone."""
        return renaming(self._model, tuple(self._blocks[int(o.place)] for o in plan.of_kind("layer")))

    def points(self, plans: dict[str, Candidate], report: Report, folder: Path) -> tuple[Point, ...]:
        found = []
        for m in report.artifacts:
            name = m.name.partition("_tflite")[0]
            if m.format != "tflite" or m.latency_ms is None or not m.quality:
                continue
            recipe = self._out / "points" / f"{name}.toml" if name in plans else None
            what = _in_words(plans[name]) if name in plans else "8 bits everywhere"
            found.append(Point(
                m.name if recipe is None else name, m.quality["accuracy"], m.bytes,
                packed_bytes=m.bytes_packed or m.bytes, latency_ms=m.latency_ms.p50, artifact=folder / m.path,
                recipe=recipe, choices=what,
            ))  # fmt: skip
        return tuple(sorted(found, key=lambda p: -p.packed_bytes))


def _same(saved: Any, model: Any) -> bool:
    """Whether two models have the same weights."""
    ours, theirs = (
        {w.path: keras_api.to_numpy(w.variable) for w in keras_api.weights(one)} for one in (saved, model)
    )
    return (
        keras_api.generation_of(saved) == keras_api.generation_of(model)
        and ours.keys() == theirs.keys()
        and all(np.array_equal(ours[path], theirs[path]) for path in ours)
    )


def _factors(found: Any) -> tuple[str, str]:
    """Paths of the two weights that a matrix becomes."""
    return f"{found.first}/{found.weight}", f"{found.second}/kernel"


def _in_words(plan: Candidate) -> str:
    def listed(options: list[Option]) -> str:
        return f"{len(options)} places" if len(options) > 1 else options[0].place

    parts = []
    if plan.of_kind("layer"):
        parts.append("without layers " + ", ".join(sorted(o.place for o in plan.of_kind("layer"))))
    if plan.of_kind("pooling"):
        parts.append("pooled early")
    for kind, word in (("heads", "fewer heads"), ("neurons", "fewer neurons"), ("channels", "fewer channels"),
                       ("width", "less width"), ("rank", "low rank"), ("zeros", "zeros"),
                       ("bits", "4 bits")):  # fmt: skip
        if plan.of_kind(kind):
            parts.append(f"{word} in {listed(plan.of_kind(kind))}")
    return "; ".join(parts) or "8 bits everywhere"
