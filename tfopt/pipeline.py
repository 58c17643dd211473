"""The whole flow: recipe -> data -> train -> compress -> export -> verify -> measure -> report.

Each step reads what earlier steps wrote to disk and nothing else, so a resumed run ends with the same
artifacts as one that was never interrupted.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tfopt import keras_api
from tfopt.compress import cluster, prune, quantize
from tfopt.data import batches as batching
from tfopt.data import pack as packing
from tfopt.data.readers import Texts, label_names, read_texts
from tfopt.data.stdlib_docs import read_stdlib_docs
from tfopt.data.tokenizers import load_tokenizer, save_tokenizer, train_bpe
from tfopt.errors import DataError, InputError
from tfopt.export import export
from tfopt.files import existing, replacing, write_bytes, write_text
from tfopt.measure.child import measure_in_child
from tfopt.measure.findings import findings
from tfopt.measure.results import Measurement
from tfopt.models.bert import BertConfig, bert
from tfopt.models.checkpoints import files_of
from tfopt.models.pretrained import check_weights, from_pretrained, read_config
from tfopt.quantization import NAMED
from tfopt.quantization.sensitivity import choose_bits
from tfopt.recipe import (
    BASELINE,
    ExportSection,
    PlannedArtifact,
    PruneSection,
    Recipe,
    TrainSection,
    VariantSection,
)
from tfopt.report import Report, machine_info
from tfopt.report.html import page
from tfopt.report.plots import plots
from tfopt.run_folder import RunFolder
from tfopt.schedules import ConstantSparsity, PolynomialDecay
from tfopt.train import TrainConfig, fit, make_strategy
from tfopt.train.fit import seed_everything, total_steps
from tfopt.train.strategy import scope

Log = Callable[[str], None]
_SAMPLES = 64


def to_stderr(line: str) -> None:
    """Shows one line of progress."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201


def run(
    recipe: Recipe | str | Path,
    out: str | Path | None = None,
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
    inputs = check_inputs(recipe)
    folder = RunFolder(out or Path("saved_models", recipe.name), recipe, inputs, resume, overwrite)
    return _Run(recipe, folder, log).all()


def check_inputs(recipe: Recipe) -> list[Path]:
    """Checks that what the recipe reads is there and fits, before anything is written; returns those files."""
    inputs = []
    if recipe.data.source == "files":
        for key in ("train", "validation"):
            value = getattr(recipe.data, key)
            if value is None:
                raise InputError(f"recipe {recipe.name!r} needs data.{key}: set it or pass --{key} FILE")
            inputs.append(existing(value, f"{key} data"))
    config = None
    if recipe.model.kind == "pretrained":
        if recipe.model.folder is None:
            raise InputError(f"recipe {recipe.name!r} needs model.folder: set it or pass --model DIR")
        folder = existing(recipe.model.folder, "model folder")
        config = read_config(folder)
        check_weights(folder, config)
        inputs += [folder / "config.json", *files_of(folder)]
        if recipe.data.max_length > config.max_position_embeddings:
            raise InputError(
                f"data.max_length {recipe.data.max_length} is more than the {config.max_position_embeddings} "
                "positions of the model"
            )
    elif recipe.model.folder is not None:
        raise InputError("model.folder was given, but model.kind is 'fresh'; set it to 'pretrained'")
    source = recipe.data.tokenizer or recipe.model.folder
    if source is not None:
        vocabulary = load_tokenizer(source).get_vocab_size()
        if config is not None and vocabulary > config.vocab_size:
            raise InputError(f"{source} has {vocabulary} tokens, the model's table has {config.vocab_size} rows")
        inputs.append(Path(source) / "tokenizer.json" if Path(source).is_dir() else Path(source))
    return inputs


class _Run:
    def __init__(self, recipe: Recipe, folder: RunFolder, log: Log) -> None:
        self.recipe, self.folder, self.log = recipe, folder, log
        self.path = folder.path
        self._loaded: tuple[str, Any] | None = None
        self._strategy = make_strategy(recipe.replicas)

    def all(self) -> Report:
        r = self.recipe
        data = self._step("data", ["data"], self._pack)
        self._step("train baseline", [_keras_file(BASELINE)], lambda: self._train_baseline(data))
        for variant in r.variants:
            train = functools.partial(self._train_variant, variant, data)
            self._step(f"train {variant.name}", [_keras_file(variant.name)], train)
        targets = {BASELINE: "baseline/saved_model", "baseline_keras": _keras_file(BASELINE)}
        exported = {}
        for planned in r.artifacts():
            targets[planned.name] = planned.path
            work = functools.partial(self._export, planned)
            exported[planned.name] = self._step(f"export {planned.name}", [planned.path], work)
        measured = self._step("measure", [], lambda: self._measure(targets, exported))
        self._step("report", ["report.json", "report.html", "plots"], lambda: self._report(measured, data))
        report = Report.load(self.path / "report.json")
        self.folder.write_manifest(report.machine)
        return report

    def _step(self, name: str, outputs: list[str], work: Callable[[], Any]) -> Any:
        def announced() -> Any:
            self.log(f"[{name}]")
            return work()

        return self.folder.do(name, outputs, announced)

    # data

    def _pack(self) -> dict[str, Any]:
        section = self.recipe.data
        train, validation = self._texts()
        names = label_names(train)
        source = section.tokenizer or self.recipe.model.folder
        tokenizer = load_tokenizer(source) if source else train_bpe(train.texts, section.vocab_size)
        with replacing(self.path / "data") as folder:
            folder.mkdir()
            save_tokenizer(tokenizer, folder / "tokenizer.json")
            manifests = {
                split: packing.write_pack(
                    folder, split, texts, tokenizer, section.max_length, names,
                    section.shards if split == "train" else 1, section.on_long, self.recipe.seed,
                )
                for split, texts in (("train", train), ("validation", validation))
            }  # fmt: skip
        facts: dict[str, Any] = {
            "labels": names, "vocab_size": tokenizer.get_vocab_size(), "on_long": section.on_long,
        }  # fmt: skip
        for split, m in manifests.items():
            facts[f"{split}_texts"], facts[f"{split}_records"] = m.texts, m.records
            facts[f"{split}_too_long"], facts[f"{split}_longest"] = m.too_long, m.longest
            facts[f"{split}_majority"] = round(max(m.class_counts) / m.records, 4)
        for note in _data_notes(facts):
            self.log(note)
        return facts

    def _texts(self) -> tuple[Texts, Texts]:
        section = self.recipe.data
        if section.source == "stdlib_docs":
            return read_stdlib_docs(self.recipe.seed)
        found = []
        for path in (section.train, section.validation):
            texts = read_texts(str(path), section.text_column, section.label_column)
            if texts.labels is None:
                raise DataError(f"{path} has no labels; a classifier needs a .tsv, .csv or .jsonl file with them")
            found.append(texts)
        return found[0], found[1]

    # train and compress

    def _train_baseline(self, data: dict[str, Any]) -> dict[str, Any]:
        section, classes = self.recipe.model, len(data["labels"])
        seed_everything(self.recipe.generation, self.recipe.seed)
        with scope(self._strategy):
            if section.folder is not None:
                model = from_pretrained(
                    section.folder, self.recipe.generation, classes, section.pooling, section.dropout
                )
            else:
                config = BertConfig(
                    vocab_size=data["vocab_size"], hidden_size=section.hidden_size,
                    num_hidden_layers=section.num_hidden_layers,
                    num_attention_heads=section.num_attention_heads,
                    intermediate_size=section.intermediate_size,
                    max_position_embeddings=self.recipe.data.max_length,
                    hidden_dropout_prob=section.dropout,
                )  # fmt: skip
                model = bert(config, classes, section.pooling, self.recipe.generation)
        history = self._fit(model, self.recipe.train, data, [], BASELINE)
        keras_api.save_model(model, self.path / _keras_file(BASELINE))
        return history

    def _train_variant(self, variant: VariantSection, data: dict[str, Any]) -> dict[str, Any]:
        seed_everything(self.recipe.generation, self.recipe.seed + 1)
        with scope(self._strategy):
            model = keras_api.load_model(self.path / _keras_file(BASELINE))
        steps = total_steps(data["train_records"], _train_config(variant.train, self.recipe.seed))
        callbacks = []
        for key, (configure, technique) in TECHNIQUES.items():
            section = getattr(variant, key)
            if section is not None:
                prepared = technique.prepare(model, configure(section, steps))
                model = prepared.model
                callbacks += prepared.callbacks
        history = self._fit(model, variant.train, data, callbacks, variant.name)
        for key, (_, technique) in TECHNIQUES.items():
            if getattr(variant, key) is not None:
                model = technique.finish(model)
        keras_api.save_model(model, self.path / _keras_file(variant.name))
        return history

    def _fit(
        self, model: Any, section: TrainSection, data: dict[str, Any], callbacks: list[Any], title: str
    ) -> dict[str, Any]:
        config = _train_config(section, self.recipe.seed)
        train = batching.batches(
            self.path / "data", config.batch_size, shuffle=True, seed=self.recipe.seed, split="train"
        )
        steps = total_steps(data["train_records"], config)
        return fit(model, train, config, steps, callbacks, self._validation(), self._strategy, title)

    def _validation(self) -> Any:
        return batching.batches(self.path / "data", 64, split="validation")

    # export

    def _export(self, planned: PlannedArtifact) -> dict[str, Any]:
        section, model = planned.section, self._model(planned.owner)
        samples = self._calibration() if section.quantization in NAMED else self._samples()
        artifact = export(
            model, self.path / planned.path, section.format, self._quantization(section, model, samples),
            section.jit_compile, representative=samples, lengths=self._lengths(section),
        )  # fmt: skip
        layers = [dataclasses.asdict(layer) for layer in artifact.layers]
        return {"max_abs_error": artifact.max_abs_error, "layers": layers}

    def _quantization(self, section: ExportSection, model: Any, samples: dict[str, Any]) -> Any:
        if section.quantization is None or section.quantization not in NAMED:
            return section.quantization
        config = dataclasses.replace(NAMED[section.quantization], rounding=section.rounding, smooth=section.smooth)
        if section.max_bytes is None and section.max_loss is None:
            return config
        chosen, table = choose_bits(model, samples, config, section.max_bytes, section.max_loss)
        self.log(table.text())
        table.save(self.path / f"{section.suffix}_sensitivity.json")
        return chosen

    def _calibration(self) -> dict[str, Any]:
        """Training texts, as many of each class, for ranges and rounding."""
        return batching.samples(self.path / "data", _SAMPLES, "train", balanced=True)

    def _lengths(self, section: ExportSection) -> list[int] | None:
        if section.format == "saved_model" and not section.jit_compile:
            return None
        longest = self.recipe.data.max_length
        return self.recipe.lengths or sorted({n for n in (32, 64, 128) if n < longest} | {longest})

    def _model(self, owner: str) -> Any:
        if self._loaded is None or self._loaded[0] != owner:
            self._loaded = (owner, keras_api.load_model(self.path / _keras_file(owner)))
        return self._loaded[1]

    def _samples(self) -> dict[str, Any]:
        return batching.samples(self.path / "data", _SAMPLES, "validation")

    # measure and report

    def _measure(self, targets: dict[str, str], exported: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
        section, samples = self.recipe.measure, self._samples()
        length = section.length or self.recipe.data.max_length
        inputs = {name: _widened(samples[name], length) for name in ("input_ids", "attention_mask")}
        found = measure_in_child(
            {name: self.path / target for name, target in targets.items()},
            self.path / "data", "validation", inputs, section.threads, section.rounds,
            {name: facts["max_abs_error"] for name, facts in exported.items()}, self.log,
        )  # fmt: skip
        layers = {name: facts["layers"] or None for name, facts in exported.items()}
        return [
            {**dataclasses.asdict(m), "path": targets[m.name], "layers": layers.get(m.name)} for m in found
        ]  # fmt: skip

    def _report(self, measured: list[dict[str, Any]], data: dict[str, Any]) -> None:
        found = [Measurement.from_dict(values) for values in measured]
        recipe = self.recipe
        pruned = {
            a.name: f"{BASELINE}_{a.section.suffix}"
            for a in recipe.artifacts()
            if any(v.name == a.owner and v.prune for v in recipe.variants)
        }
        notes = [*_data_notes(data), *findings(found, pruned)]
        report = Report(machine_info(), recipe.to_dict(), found, self.folder.steps, data, notes)
        pictures = plots(report)
        with replacing(self.path / "plots") as folder:
            folder.mkdir()
            for name, picture in pictures.items():
                write_bytes(folder / f"{name}.png", picture)
        write_text(self.path / "report.html", page(report, pictures, recipe.to_toml()))
        report.save(self.path / "report.json")


def prune_config(section: PruneSection, steps: int) -> prune.PruneConfig:
    """The technique's configuration for a training of so many steps."""
    begin, end = round(section.begin * steps), max(round(section.end * steps), 1)
    schedule: Any
    if section.schedule == "polynomial":
        schedule = PolynomialDecay(
            section.initial_sparsity, section.sparsity, begin, end, frequency=section.frequency
        )
    else:
        schedule = ConstantSparsity(section.sparsity, begin, end, section.frequency)
    return prune.PruneConfig(schedule, section.structure, section.scope, section.include, section.exclude)


# Section of a variant -> how its configuration is made, and the technique's module; in the order in which their
# callbacks run. Rounding comes last: it sees the weights as the others leave them.
TECHNIQUES: dict[str, tuple[Callable[[Any, int], Any], Any]] = {
    "prune": (prune_config, prune),
    "cluster": (lambda section, steps: cluster.ClusterConfig(**section.model_dump()), cluster),
    "quantize": (lambda section, steps: section.config(steps), quantize),
}


def _train_config(section: TrainSection, seed: int) -> TrainConfig:
    return TrainConfig(**section.model_dump(), seed=seed)


def _keras_file(owner: str) -> str:
    return f"{owner}/model.keras"


def _widened(value: Any, length: int) -> Any:
    """Rows cut or repeated along the sequence to exactly `length`, so that timing sees no padding."""
    repeats = -(-length // value.shape[1])
    return np.tile(value, (1, repeats))[:, :length] if value.shape[1] != length else value


def _data_notes(data: dict[str, Any]) -> list[str]:
    """What happened to texts that were too long."""
    return [
        f"{data[f'{split}_too_long']} of {data[f'{split}_texts']} {split} texts were longer than the model takes "
        f"and were {'cut' if data['on_long'] == 'truncate' else 'dropped'} (the longest had "
        f"{data[f'{split}_longest']} tokens)."
        for split in ("train", "validation")
        if data[f"{split}_too_long"]
    ]
