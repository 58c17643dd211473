"""One command to the best result: an original, its students, and the one file to ship."""

import functools
import hashlib
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfopt._base.files import remove, sha256, tree_digest, write_json
from tfopt._base.foreign import read_json
from tfopt._keras import keras_api
from tfopt._keras.custom import register_classes
from tfopt._keras.loading import load_model
from tfopt.compress.vocabulary import cut_rows
from tfopt.data.readers.texts import read_texts
from tfopt.data.tokenizers import load_tokenizer
from tfopt.data.vocabulary import cut_tokenizer
from tfopt.errors import InputError, ModelFileError, TfoptError, WorkFailedError
from tfopt.recipe import BASELINE, Recipe
from tfopt.recipe.goal import check_goal
from tfopt.run import pipeline
from tfopt.search import clock
from tfopt.search.ladder import Rung, full_ladder, short_ladder, width_of
from tfopt.search.original import Corpus, held_out, recipe_of
from tfopt.search.shipping import Candidates, Optimized, ship
from tfopt.structure.blocks import blocks_of
from tfopt.structure.groups import structure_of
from tfopt.tasks import task_of

Log = Callable[[str], None]
_PROBED, _BATCH = 8, 32
_FULL_S = 180.0  # with less, a full ladder is not even looked at, which takes some seconds
_FINISH_S, _STUDENT_S = 20.0, 2.0  # to measure and report, beside what grows with the original and its files
_PACK_S = 0.2e-6  # of a byte, by two packers
_LEAST_TIME = 0.6  # share of an epoch without which the smallest students are not trained either
_ORIGINALS = 3  # as many files of the original answer the held-out texts; those of students are much faster
_LEARNING = 0.5  # share of the time that an original may learn for
_WRITTEN = (
    "runs", "plan.json", "teacher.keras", "given.keras", "encoder", "tokenizer.json", "train.jsonl",
    "validation.jsonl", "model.tflite", "report.html", "report.json", "front.png", "front.json",
)  # fmt: skip
_LEAST, _WORTH = 2, 0.8  # tokens that occur less often go, where fewer than this share stay
_LESSONS_BYTES = 10_000_000_000  # of a teacher's states that are kept on disk


def optimize(
    model: Any,
    data: str | Path,
    *,
    out: str | Path,
    validation: str | Path | None = None,
    accuracy: float | None = None,
    max_latency_ms: float | None = None,
    max_bytes: int | None = None,
    minutes: float | None = None,
    text_column: str | None = None,
    label_column: str = "label",
    tokenizer: str | Path | None = None,
    max_length: int | None = None,
    epochs: int = 2,
    rounds: int = 50,
    threads: int | None = None,
    imports: Sequence[str] = (),
    log: Log = pipeline.to_stderr,
) -> Optimized:
    """Makes a classifier of texts as small and fast as a goal allows, and names the one file to ship.

    Students are cut from the model (layers, heads, neurons, channels, early pooling, vocabulary, rank of tables,
    bits) and learn from it, see `search.ladder`; all are written, checked, and measured in turns beside the model.
    It goes on where an interrupted call stopped, and another goal reuses everything.

    Args:
        model: a Keras classifier of either generation, its `.keras` or `.h5` file, or a folder of Hugging Face or
            KerasHub; an encoder alone is trained first, with a head for the labels.
        data: training texts with labels (.tsv, .csv, .jsonl, .parquet).
        out: folder for `model.tflite`, `report.html`, `report.json`, `front.png` and the runs.
        validation: held-out texts; by default a tenth of the others.
        accuracy: the goal: at least this share, in (0, 1], of the model's accuracy; the point with the least
            product of packed bytes and latency is chosen. 0.99 if no goal is given.
        max_latency_ms: the goal instead: at most these median milliseconds for one row; the most accurate is
            chosen.
        max_bytes: the goal instead: at most these bytes of the file.
        minutes: for everything; trainings are planned and ended so that they fit. None for as long as it takes.
        text_column, label_column: of tables.
        tokenizer: a `tokenizer.json`, where none comes with the model.
        max_length: tokens of a text; longer ones are cut. By default what the model says, up to 512, else 128.
        epochs: of the training of a model without a head.
        rounds: timed calls of each artifact.
        threads: of the runtimes.
        imports: modules or files that define classes of a Keras file; they are run.
        log: told what is being done.

    Raises:
        InputError: more than one goal, one out of range, or one that nothing reaches (the nearest is named); a
            model without a tokenizer, or of other classes than the texts.
        DataError: texts without labels.
    """
    goal = check_goal(accuracy, max_latency_ms, max_bytes, minutes=minutes)
    folder, began = Path(out).resolve(), time.monotonic()
    register_classes(imports)
    corpus = Corpus(
        Path(data), None if validation is None else Path(validation), text_column=text_column,
        label_column=label_column,
    )  # fmt: skip
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        recipe = recipe_of(model, corpus, folder, tokenizer=tokenizer, max_length=max_length, epochs=epochs)
    except TfoptError:
        if is_new:
            remove(folder)
        raise
    return optimize_recipe(
        recipe, folder, goal=goal, minutes=minutes, rounds=rounds, threads=threads, log=log, began=began
    )


def forget(out: Path) -> None:
    """Removes what an optimization wrote into a folder, and nothing else that lies there."""
    for name in _WRITTEN:
        remove(out / name)


def optimize_recipe(
    recipe: Recipe,
    out: Path,
    *,
    goal: tuple[str, float],
    minutes: float | None = None,
    rounds: int = 50,
    threads: int | None = None,
    log: Log = pipeline.to_stderr,
    began: float | None = None,
) -> Optimized:
    """`optimize` for the baseline of a recipe for classification; `goal` is what `check_goal` gives."""
    began = time.monotonic() if began is None else began
    work = _Work(recipe, out, minutes, log=log, began=began)
    original = work.original()
    if BASELINE in original.refused:
        raise WorkFailedError(f"the original could not be written: {original.refused[BASELINE]}")
    students, says = work.students(original)
    found = Candidates(recipe, held_out(recipe), original, students=students, says=says)
    return ship(found, out, goal=goal, rounds=rounds, threads=threads, log=log)


class _Work:
    """The two runs: of the original, and of its students."""

    def __init__(self, recipe: Recipe, out: Path, minutes: float | None, *, log: Log, began: float) -> None:
        self._recipe, self._out, self._minutes, self._log = recipe, out, minutes, log
        self._end = None if minutes is None else began + 60 * minutes

    def original(self) -> pipeline.Built:
        """Trains the original if it has to be, and writes it."""
        values = self._recipe.to_dict()
        if self._minutes is not None and self._recipe.train.epochs:
            values["train"] = {**values["train"], "minutes": round(_LEARNING * self._minutes, 2)}
        exports = [{"format": "tflite"}, {"format": "tflite", "quantization": "dynamic_int8"}]
        return self._build({**values, "name": "original", "variants": [], "exports": exports})

    def students(self, original: pipeline.Built) -> tuple[pipeline.Built | None, dict[str, str]]:
        """Trains and writes the students there is time for; returns their run, and what was done to each."""
        model = load_model(original.folder / "baseline" / "model.keras")
        file = keras_api.save_model(_without_dropout(model), self._out / "teacher.keras")
        data = self._data(model, original.folder)
        plan = self._plan(model, original, data)
        if not plan["variants"]:
            return None, {}
        owners = [variant["name"] for variant in plan["variants"]]
        trained = [variant["name"] for variant in plan["variants"] if "quantize" in variant]
        exports: list[dict[str, Any]] = [
            {"format": "tflite", "quantization": "dynamic_int8", "of": [n for n in owners if n not in trained]}
        ]
        exports += [{"format": "tflite", "quantization": "trained", "of": trained}] if trained else []
        built = self._build({
            **self._recipe.to_dict(), "name": "students", "data": data, "train": {"epochs": 0},
            "model": {"kind": "keras", "file": str(file), **_inputs(self._recipe)},
            "variants": plan["variants"], "exports": exports,
        }, of=owners)  # fmt: skip
        return built, plan["says"]

    def _build(self, values: dict[str, Any], of: list[str] | None = None) -> pipeline.Built:
        """Runs a recipe in a folder of its own, or goes on with it; other recipes' runs stay."""
        recipe = Recipe.model_validate(values)
        digest = hashlib.sha256(recipe.to_toml().encode())
        for path in task_of(recipe, self._out / "data").check_inputs():
            digest.update(tree_digest(path).encode())
        folder = self._out / "runs" / f"{recipe.name}-{digest.hexdigest()[:12]}"
        return pipeline.build(recipe, folder, of=of, log=self._told)

    def _told(self, line: str) -> None:
        """Shows a line, at the beginning of a step with the time that is left."""
        left = "" if self._end is None else f" ({max(self._end - time.monotonic(), 0) / 60:.1f} of "
        left += "" if self._end is None else f"{self._minutes:g} minutes left)"
        self._log(line + (left if line.startswith("[") else ""))

    def _data(self, model: Any, original: Path) -> dict[str, Any]:
        """The students' data: with a vocabulary cut to the texts, where a given one has much that they lack."""
        section = self._recipe.data
        packed = {"source": "packed", "folder": str(original / "data"), "max_length": section.max_length}
        if section.source != "files" or not (section.tokenizer or self._recipe.model.folder):
            return packed
        tokenizer = load_tokenizer(original / "data")
        texts = self._training_texts()
        try:
            _, kept = cut_tokenizer(tokenizer.to_str(), "the tokenizer", texts, least=_LEAST)
            cut_rows(model, kept)
        except (InputError, ModelFileError) as error:
            self._log(f"the vocabulary stays: {error}")
            return packed
        if len(kept) > _WORTH * tokenizer.get_vocab_size():
            return packed
        self._log(f"vocabulary: {len(kept):,} of {tokenizer.get_vocab_size():,} tokens occur in the texts")
        values = section.model_dump(mode="json", exclude_none=True)
        return {**values, "tokenizer": str(original / "data" / "tokenizer.json"), "least_count": _LEAST}

    def _training_texts(self) -> list[str]:
        section = self._recipe.data
        return read_texts(str(section.train), section.text_column, section.label_column).texts

    def _plan(self, model: Any, original: pipeline.Built, data: dict[str, Any]) -> dict[str, Any]:
        """The students' variants; made once for an original and a time: it depends on how busy the machine is."""
        weights = sha256(original.folder / "baseline" / "model.keras")
        key = {"original": weights, "data": data, "minutes": self._minutes}
        path = self._out / "plan.json"
        if path.exists():
            known = read_json(path, "plan")
            if isinstance(known, dict) and known.get("key") == key:
                return known
        plan = {"key": key, **self._planned(model, original)}
        write_json(path, plan)
        return plan

    def _planned(self, model: Any, original: pipeline.Built) -> dict[str, Any]:
        task = task_of(self._recipe, original.folder / "data")
        steps = math.ceil(original.data["train_records"] / _BATCH)
        batches = clock.batches_of_inputs(task, _BATCH, _PROBED)
        answer = clock.answer_seconds(model, batches)
        lessons = _lessons_bytes(model, batches, steps)
        cached = lessons <= min(_LESSONS_BYTES, shutil.disk_usage(self._out).free / 3)
        takes = functools.partial(clock.training_seconds, answer_s=answer, steps=steps, cached=cached)
        left = None if self._end is None else self._end - time.monotonic()
        try:
            for rungs in _choices(model, left):
                budget = None if left is None else left - _finish_seconds(original, len(rungs), answer)
                last = rungs[0].name == "small"
                epochs = clock.epochs_within(rungs, takes, budget, any_share=last)
                needed = sum(takes(rung, 1) for rung in rungs)
                if not epochs and last and budget is not None and budget > _LEAST_TIME * clock.OVERRUN * needed:
                    epochs = {rung.name: 1 for rung in rungs}  # that end early
                if epochs:
                    seconds = {rung.name: takes(rung, epochs[rung.name]) for rung in rungs}
                    fits = 1.0 if budget is None else min(1.0, budget / (clock.OVERRUN * sum(seconds.values())))
                    minutes = {name: fits * took / 60 for name, took in seconds.items()}
                    return self._chosen(rungs, epochs, minutes, cached=cached)
        except InputError as error:
            self._log(str(error))
        self._log("no students are trained")
        return {"variants": [], "says": {}}

    def _chosen(
        self, rungs: list[Rung], epochs: dict[str, int], minutes: dict[str, float], *, cached: bool
    ) -> dict[str, Any]:
        variants = []
        for rung in rungs:
            count, about = epochs[rung.name], minutes[rung.name]
            self._log(f"student {rung.name}: {rung.says} ({count} epochs, about {about:.1f} minutes)")
            most = None if self._minutes is None else round(clock.OVERRUN * about, 2)
            variants.append(rung.variant(count, cached, most))
        return {"variants": variants, "says": {rung.name: rung.says for rung in rungs}}


def _choices(model: Any, left: float | None) -> Iterator[list[Rung]]:
    """Students that could be trained, the more the better: all, the first of them, the smallest alone."""
    if left is None or left > _FULL_S:
        rungs = full_ladder(model)
        yield from (rungs[:count] for count in (len(rungs), 3, 2) if count <= len(rungs))
    yield short_ladder(model)


def _finish_seconds(original: pipeline.Built, students: int, answer_s: float) -> float:
    """For writing, checking and measuring so many students, by what the original took, and takes for a batch."""
    took = [step.seconds for step in original.steps if step.name.startswith("export")]
    packed = (_ORIGINALS + students) * (original.folder / "baseline" / "model.keras").stat().st_size
    answers = math.ceil(original.data["validation_records"] / _BATCH) * answer_s
    return _FINISH_S + students * (_STUDENT_S + took[-1]) + _PACK_S * packed + _ORIGINALS * answers


def _inputs(recipe: Recipe) -> dict[str, Any]:
    return {"inputs": dict(recipe.model.inputs)} if recipe.model.inputs else {}


def _without_dropout(model: Any) -> Any:
    for _, layer in keras_api.walk(model):
        if getattr(layer, "rate", None):
            layer.rate = 0.0
    return model


def _lessons_bytes(model: Any, batches: list[Any], steps: int) -> float:
    """Of hidden states of half the layers, if they were kept for an epoch."""
    tokens = np.mean([next(iter(inputs.values())).shape[:2].num_elements() for inputs in batches])
    return float(tokens * width_of(model) * 4 * max(len(blocks_of(model, structure_of(model))) / 2, 1) * steps)
