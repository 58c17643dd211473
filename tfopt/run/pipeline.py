"""The whole flow: recipe -> data -> train -> compress -> export -> verify -> measure -> report.

Each step reads what earlier steps wrote to disk and nothing else, so a resumed run ends with the same
artifacts as one that was never interrupted.
"""

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from tfopt._base.files import remove, replacing, write_bytes, write_text
from tfopt._keras import keras_api
from tfopt._keras.copying import copy_of
from tfopt._keras.devices import limit_gpu_memory
from tfopt._keras.loading import load_model
from tfopt._keras.precision import default_policy, widen
from tfopt.compress.finish import finish_all
from tfopt.compress.vocabulary import cut_rows
from tfopt.errors import InputError, VerificationError
from tfopt.export.export import export
from tfopt.export.integers import refined
from tfopt.export.texts import keep_for_texts
from tfopt.measure.child import measure_in_child
from tfopt.measure.findings import findings
from tfopt.measure.results import Measurement
from tfopt.quantization import NAMED
from tfopt.quantization.sensitivity import choose_bits
from tfopt.recipe import BASELINE, PlannedArtifact, Recipe
from tfopt.recipe.sections import ExportSection, TrainSection
from tfopt.recipe.techniques import VariantSection
from tfopt.report import Report, Step, machine_info
from tfopt.report.html import page
from tfopt.report.plots import plots
from tfopt.run.folder import CHECKPOINTS, LESSONS, RunFolder
from tfopt.run.material import Material, without
from tfopt.run.named import told
from tfopt.run.placement import devices_of
from tfopt.run.training import Trainings, train_config
from tfopt.run.workers import folder_for
from tfopt.tasks import task_of
from tfopt.train import make_strategy
from tfopt.train.fit import seed_everything, total_steps
from tfopt.train.strategy import is_chief, scope, works_with_others
from tfopt.train.trackers import check_trackers

Log = Callable[[str], None]
_DATA = "data"


def to_stderr(line: str) -> None:
    """Shows one line of progress."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201


def run(
    recipe: Recipe | str | Path,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    log: Log = to_stderr,
) -> Report:
    """Runs a recipe from data to report.

    Args:
        recipe: a Recipe, a TOML file, or the name of a built-in recipe.
        out: folder for everything the run writes; by default `saved_models/<name>`.
        resume: go on with an interrupted run in that folder.
        overwrite: begin anew over an earlier run in that folder.
        log: shown what is being done.

    Returns:
        The report; it is also in the folder, as `report.json` and `report.html`.

    Raises:
        InputError: something in the recipe or the data is wrong; nothing was written.
        WorkFailedError: training diverged or a conversion failed.
        VerificationError: an artifact failed a check.
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    recipe.workers.made().check()
    for section in (recipe.train, *(variant.train for variant in recipe.variants)):
        check_trackers(section.trackers)
    out = Path(out or Path("saved_models", recipe.name))
    limit_gpu_memory(recipe.gpu_memory)
    strategy = make_strategy(recipe.replicas, kind=recipe.strategy)
    devices = devices_of(recipe, strategy)
    inputs = task_of(recipe, out / _DATA).check_inputs()
    folder = folder_for(strategy, out, recipe, inputs=inputs, resume=resume, overwrite=overwrite)
    with contextlib.closing(folder):
        return _Run(recipe, folder, log, strategy=strategy, devices=devices).all()


@dataclasses.dataclass(frozen=True)
class Built:
    """What a run wrote before anything is measured.

    Attributes:
        folder: of the run.
        data: facts about the data.
        notes: sentences about it.
        steps: that were done.
        curves: of its trainings, as in a report.
        refused: artifact that did not pass verification -> why; it was not written.
    """

    folder: Path
    data: dict[str, Any]
    notes: list[str]
    steps: list[Step]
    curves: dict[str, Any]
    refused: dict[str, str]


def build(recipe: Recipe, out: Path, *, of: Collection[str] | None = None, log: Log = to_stderr) -> Built:
    """A run up to its artifacts, or the rest of one that was begun in that folder; `run` would measure them too.

    Args:
        recipe: as for `run`.
        out: the folder.
        of: the baseline and variants whose artifacts are written; None for all.
        log: shown what is being done.
    """
    strategy = make_strategy(recipe.replicas, kind=recipe.strategy)
    if works_with_others(strategy):
        raise InputError("several workers run a recipe, with `tfopt launch`; a search is for one process")
    devices = devices_of(recipe, strategy)
    folder = RunFolder(
        out, recipe, task_of(recipe, out / _DATA).check_inputs(), resume=out.exists(), overwrite=False
    )
    with contextlib.closing(folder):
        work = _Run(recipe, folder, log, strategy=strategy, devices=devices)
        data, exported = work.artifacts(of, go_on=True)
        refused = {name: facts["refused"] for name, facts in exported.items() if "refused" in facts}
        return Built(
            out, data, notes=work.task.notes(data), steps=folder.steps, curves=work.curves, refused=refused
        )


class _Run:
    def __init__(
        self, recipe: Recipe, folder: RunFolder, log: Log, *, strategy: Any, devices: Sequence[str]
    ) -> None:
        self.recipe, self.folder, self.log = recipe, folder, log
        self.path = folder.path
        self._loaded: tuple[str, Any] | None = None
        self.curves: dict[str, Any] = {}
        self.task = task_of(recipe, folder.path / _DATA)
        self._strategy, self._writes = strategy, is_chief(strategy)
        self._trainings = Trainings(recipe, folder, task=self.task, strategy=strategy, devices=devices)

    def artifacts(
        self, of: Collection[str] | None = None, go_on: bool = False
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Trains and writes; returns facts about the data, and by artifact what its export found.

        Args:
            of: see `build`.
            go_on: after an artifact that does not pass verification; why is found then.
        """
        r = self.recipe
        data = self._step("data", [_DATA], lambda: self.task.pack(self.log))
        self.curves[BASELINE] = self._step(
            "train baseline", [_keras_file(BASELINE)], lambda: self._train_baseline(data), together=True
        )
        for variant in r.variants:
            train = functools.partial(self._train_variant, variant, data)
            self.curves[variant.name] = self._step(f"train {variant.name}", [variant.name], train, together=True)
        if self._writes:
            remove(self.path / LESSONS)
        exported = {}
        for planned in r.artifacts():
            if of is None or planned.owner in of:
                work = functools.partial(self._export_if_right if go_on else self._export, planned)
                exported[planned.name] = self._step(f"export {planned.name}", [planned.path], work)
        return data, exported

    def all(self) -> Report:
        data, exported = self.artifacts()
        targets = {BASELINE: "baseline/saved_model", "baseline_keras": _keras_file(BASELINE)}
        targets |= {planned.name: planned.path for planned in self.recipe.artifacts()}
        measured = self._step("measure", [], lambda: self._measure(targets, exported))
        self._step("report", ["report.json", "report.html", "plots"], lambda: self._report(measured, data))
        report = Report.load(self.path / "report.json")
        if self._writes:
            self.folder.write_manifest(report.machine)
        return report

    def _step(self, name: str, outputs: list[str], work: Callable[[], Any], *, together: bool = False) -> Any:
        def announced() -> Any:
            self.log(f"[{name}]")
            return work()

        return self.folder.do(name, outputs, announced, together=together)

    # train and compress

    def _train_baseline(self, data: dict[str, Any]) -> dict[str, Any]:
        seed_everything(self.recipe.generation, self.recipe.seed)
        if self._writes:
            remove(self.path / LESSONS)  # of what the baseline was before
        policy = default_policy(keras_api.keras_module(self.recipe.generation), self.recipe.precision)
        with scope(self._strategy), policy:
            model, kept = self.task.build(data), self.task.kept_tokens()
            model = model if kept is None else cut_rows(model, kept)
            model = self._trainings.placed(model, self.recipe.train)
        self._keep_for_texts(model, data)
        history = (
            self._trainings.fit(model, self.recipe.train, data=data, callbacks=[], title=BASELINE)
            if self.recipe.train.epochs
            else {}
        )
        self._keep(model, BASELINE)
        return history

    def _keep_for_texts(self, model: Any, data: dict[str, Any]) -> None:
        """Tokenizer, task and labels travel with the model, into every artifact that is made of it."""
        facts = self.task.text_facts(data)
        if facts is not None:
            keep_for_texts(model, facts, (self.task.data / "tokenizer.json").read_bytes())

    def _train_variant(self, variant: VariantSection, data: dict[str, Any]) -> dict[str, Any]:
        seed_everything(self.recipe.generation, self.recipe.seed + 1)
        config, epochs = variant.train, variant.train.epochs
        steps = total_steps(data["train_records"], train_config(self.recipe, config)) if epochs else 0
        material = Material(steps, _passes(config), task=self.task, baseline=self.path / _keras_file(BASELINE))
        with scope(self._strategy):
            model = self._trainings.placed(load_model(self.path / _keras_file(variant.start)), config)
        callbacks: list[Any] = []
        helpers: list[str] = []
        state: list[Any] = []
        files: list[Callable[[], dict[str, bytes]]] = []
        lessons = enter = None
        for technique, section in variant.techniques():
            module = technique.load()
            settings = without(section, helpers).settings(material)
            if technique.stage(getattr(section, "when", None), epochs) == "at once":
                model = module.at_once(model, module.Config(**settings))
                continue
            with scope(self._strategy):
                prepared = module.prepare(model, module.Config(**settings))
            model, callbacks = prepared.model, callbacks + prepared.callbacks
            helpers += prepared.helpers
            state += prepared.state
            files.append(prepared.files)
            lessons, enter = prepared.lessons or lessons, prepared.enter or enter
        history = {}
        if epochs:
            cache = variant.distill is not None and variant.distill.cache
            history = self._trainings.fit(
                model, config, data=data, callbacks=callbacks, title=variant.name, lessons=lessons, cache=cache,
                state=state, enter=enter,
            )  # fmt: skip
        if self._writes and len(list(variant.techniques())) == 1:  # they go with the model that it began with
            for name, content in (item for some in files for item in some().items()):
                write_bytes(self.path / variant.name / name, content)
        self._keep(finish_all(model), variant.name)
        return history

    def _keep(self, model: Any, owner: str) -> None:
        # A copy is not compiled: to read metrics, and statistics of batch norms, asks all workers.
        model = (works_with_others(self._strategy) and copy_of(model)) or model
        if self._writes:
            keras_api.save_model(model, self.path / _keras_file(owner))
            remove(self.path / CHECKPOINTS)

    # export

    def _export(self, planned: PlannedArtifact) -> dict[str, Any]:
        section, model = planned.section, self._model(planned.owner)
        samples = self.task.calibration() if section.quantization in NAMED else self.task.samples()
        artifact = export(
            model, self.path / planned.path, format=section.format,
            quantization=self._quantization(section, model, samples), jit_compile=section.jit_compile,
            representative=samples, lengths=self.task.lengths(section), in_place=True,
            accept=section.accept, workers=self.recipe.workers.made(),
        )  # fmt: skip
        layers = [dataclasses.asdict(layer) for layer in artifact.layers]
        return {"max_abs_error": artifact.max_abs_error, "layers": layers}

    def _export_if_right(self, planned: PlannedArtifact) -> dict[str, Any]:
        try:
            return self._export(planned)
        except VerificationError as error:
            self.log(f"{planned.name} is left out: {error}")
            return {"refused": str(error)}

    def _quantization(self, section: ExportSection, model: Any, samples: dict[str, Any]) -> Any:
        if section.quantization is None or section.quantization not in NAMED:
            return section.quantization
        config = refined(
            section.quantization, model, section.rounding, smooth=section.smooth, rotate=section.rotate,
            bits=section.bits,
        )  # fmt: skip
        if section.max_bytes is None and section.max_loss is None:
            return config
        chosen, table = choose_bits(model, samples, config, max_bytes=section.max_bytes, max_loss=section.max_loss)
        self.log(table.text())
        table.save(self.path / f"{section.suffix}_sensitivity.json")
        return chosen

    def _model(self, owner: str) -> Any:
        if self._loaded is None or self._loaded[0] != owner:
            self._loaded = (owner, load_model(self.path / _keras_file(owner)))
            widen(self._loaded[1])  # artifacts are in float32
        return self._loaded[1]

    # measure and report

    def _measure(self, targets: dict[str, str], exported: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
        section, held_out = self.recipe.measure, self.task.held_out()
        errors = {name: facts["max_abs_error"] for name, facts in exported.items()}
        found = measure_in_child(
            {name: self.path / target for name, target in targets.items()},
            data=held_out.data, text=held_out.text, window=held_out.window, score=held_out.score,
            inputs=held_out.inputs,
            threads=section.threads, rounds=section.rounds, seconds=section.seconds, memory=section.memory,
            errors=errors, log=self.log, workers=self.recipe.workers.made(),
        )  # fmt: skip
        layers = {name: facts["layers"] or None for name, facts in exported.items()}
        return [
            {**dataclasses.asdict(m), "path": targets[m.name], "layers": layers.get(m.name)} for m in found
        ]  # fmt: skip

    def _report(self, measured: list[dict[str, Any]], data: dict[str, Any]) -> None:
        recipe, labels = self.recipe, data.get("labels")
        found = [told(Measurement.from_dict(values), labels, self.task.texts_at) for values in measured]
        pruned = {
            a.name: f"{BASELINE}_{a.section.suffix}"
            for a in recipe.artifacts()
            if any(v.name == a.owner and v.prune for v in recipe.variants)
        }
        held_out = {"rows": data.get("validation_records"), "majority": data.get("validation_majority")}
        notes = [*self.task.notes(data), *findings(found, pruned, **held_out)]
        report = Report(
            machine_info(), self._as_run(), found, steps=self.folder.steps, data=data, notes=notes,
            curves={name: curves for name, curves in self.curves.items() if curves},
        )  # fmt: skip
        pictures = plots(report)
        with replacing(self.path / "plots") as folder:
            folder.mkdir()
            for name, picture in pictures.items():
                write_bytes(folder / f"{name}.png", picture)
        write_text(self.path / "report.html", page(report, pictures, recipe.to_toml()))
        report.save(self.path / "report.json")

    def _as_run(self) -> dict[str, Any]:
        """The recipe with what the run chose itself."""
        values = self.recipe.to_dict()
        trainings = [self.recipe.train, *(v.train for v in self.recipe.variants)]
        for section, train in zip([values, *values["variants"]], trainings, strict=True):
            section["train"]["learning_rate"] = self.recipe.rate(train)
        chosen = [self.task.lengths(export) for export in self.recipe.exports]
        lengths = next((found for found in chosen if found), None)
        return values if lengths is None else {**values, "lengths": lengths}


def _passes(section: TrainSection) -> int:
    """How often the model is called in a step."""
    return section.accumulate * (2 if section.r_drop or section.adversarial else 1)


def _keras_file(owner: str) -> str:
    return f"{owner}/model.keras"
