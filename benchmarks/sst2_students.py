"""Students of MiniLM-L6 on SST-2: what is taken out of each, and how it learns from the fine-tuned model.

All of them, and their teacher, have the vocabulary cut to what the training texts use. The teacher's answers are
kept on disk, so it runs once for all students that look at the same layers of it.
"""

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tfopt import Distiller, cut_vocabulary, factorize, shrink
from tfopt._base.files import replacing, write_json
from tfopt._keras import keras_api
from tfopt._keras.loading import load_model
from tfopt.compress import prune, quantize
from tfopt.data import batches as batching
from tfopt.data import pack as packing
from tfopt.data.readers.texts import Texts, label_names, read_texts
from tfopt.data.tokenizers import parse_tokenizer, save_tokenizer
from tfopt.quantization import QuantizeConfig
from tfopt.recipe import Recipe
from tfopt.schedules import PolynomialDecay
from tfopt.structure.rebuild import Changes, rebuild
from tfopt.train.fit import seed_everything

BATCH, SEED, LEAST = 32, 7, 2  # LEAST: how often a token occurs in the training texts to stay
_TABLE = "word_embeddings/embeddings"
_BODY = ["layer_*"]  # weights of the encoder's layers


class Student(NamedTuple):
    """How a student comes about.

    Attributes:
        seen: the teacher's layer that each of the student's learns from, by number.
        epochs, rate: of its training.
        start: the student it begins as; the teacher otherwise.
        cut: arguments of `shrink`.
        rank: of the two factors of the table of tokens.
        zeros: share of the encoder's weights that become zero, anywhere.
        bits: of weights, rounded during the training.
    """

    seen: dict[int, int]
    epochs: int
    rate: float
    start: str | None = None
    cut: dict[str, Any] | None = None
    rank: int | None = None
    zeros: float | None = None
    bits: int | None = None


_THREE, _SIX = {0: 1, 1: 3, 2: 5}, {1: 1, 3: 3, 5: 5}
# The last layer sees one token, so its neurons cost next to nothing.
_POOLED = {"pool_early": True, "heads": 1 / 3, "neurons": {f"layer_{i}_intermediate": 0.25 for i in (0, 1)}}
STUDENTS = {
    "3 layers, half the neurons": Student(_THREE, 5, 1.5e-4, cut={"layers": [0, 2, 4], "neurons": 0.5}),
    "2 layers, half of heads and neurons": Student(
        {0: 2, 1: 5}, 10, 2e-4, cut={"layers": [0, 1, 3, 4], "heads": 0.5, "neurons": 0.5}
    ),
    "6 layers, 60 % zeros": Student(_SIX, 2, 1e-4, zeros=0.6),
    "6 layers, 80 % zeros": Student(_SIX, 3, 1e-4, start="6 layers, 60 % zeros", zeros=0.8),
    "3 layers, half the neurons, rank 128, int4": Student(
        _THREE, 6, 1e-4, start="3 layers, half the neurons", rank=128, bits=4
    ),
    "3 layers, pooled early": Student({0: 1, 1: 3}, 8, 1.5e-4, start="3 layers, half the neurons", cut=_POOLED),
    "3 layers, pooled early, rank 128, int4": Student(
        {0: 1, 1: 3}, 6, 1e-4, start="3 layers, pooled early", rank=128, bits=4
    ),
}


class School:
    """Trains students of one run's model and keeps everything in a folder."""

    def __init__(self, run: Path, work: Path) -> None:
        self.work, self.data, self._run = work, work / "data", run
        self._prepare()

    def file(self, name: str) -> Path:
        return self.work / f"{name.replace(' ', '_').replace(',', '').replace('%', 'percent')}.keras"

    def train(self, name: str) -> None:
        """Writes the student's model and how it was trained, unless they are there."""
        path, student = self.file(name), STUDENTS[name]
        if path.exists():
            return
        if student.start is not None:
            self.train(student.start)
        seed_everything("tf_keras", SEED)
        teacher = self._without_dropout(self._teacher)
        model = self._without_dropout(self._teacher if student.start is None else self.file(student.start))
        if student.cut is not None:
            model = shrink(model, **student.cut, data=self.batches("train").take(32))
        if student.rank is not None:
            model = factorize(model, rank=student.rank, include=["word_embeddings"])
        distiller = Distiller(model, teacher, logits=1.0, hidden=1.0, temperature=2.0, layers=student.seen)
        started = time.perf_counter()
        history = self._fit(distiller, student)
        keras_api.save_model(distiller.finish(), path)
        facts = {"seconds": round(time.perf_counter() - started), **student._asdict(), "loss": history["loss"]}
        facts["seen"] = list(student.seen.values())
        write_json(path.with_suffix(".json"), {k: v for k, v in facts.items() if v is not None})

    def model(self, name: str, whole_vocabulary: bool = False) -> Any:
        """A trained student, or the float model without a name in STUDENTS.

        Args:
            name: of the student.
            whole_vocabulary: with the float model's rows for the tokens that the training texts do not have.
        """
        model = load_model(self.file(name) if name in STUDENTS else self._teacher)
        if not whole_vocabulary:
            return model
        table = self._table(load_model(self._run / "baseline" / "model.keras")).copy()
        table[np.load(self.work / "kept.npy")] = self._table(model)
        return rebuild(model, Changes({_TABLE: table}))

    def _table(self, model: Any) -> np.ndarray:
        return keras_api.to_numpy(next(w.variable for w in keras_api.weights(model) if w.path == _TABLE))

    def trainings(self) -> dict[str, Any]:
        return {n: json.loads(f.read_text("utf-8")) for n in STUDENTS if (f := self._facts(n)).exists()}

    def batches(self, split: str, shuffle: bool = False) -> Any:
        return batching.batches(self.data, BATCH, shuffle=shuffle, seed=SEED, split=split)

    def _facts(self, name: str) -> Path:
        return self.file(name).with_suffix(".json")

    @property
    def _teacher(self) -> Path:
        return self.work / "teacher.keras"

    def _fit(self, distiller: Distiller, student: Student) -> dict[str, list[float]]:
        keras = keras_api.keras_module("tf_keras")
        data = self.batches("train", shuffle=True)
        steps = student.epochs * int(data.cardinality())
        techniques: list[tuple[Any, Any]] = []
        if student.zeros is not None:
            before = 0.0 if student.start is None else STUDENTS[student.start].zeros or 0.0
            schedule = PolynomialDecay(before, student.zeros, 0, end_step=steps // 2, frequency=50)
            techniques.append((prune, prune.PruneConfig(schedule, include=_BODY)))
        if student.bits is not None:
            config = QuantizeConfig(weight_bits=student.bits, weight_scale="mse", table_bits=8)
            techniques.append((quantize, config))
        callbacks = []
        for technique, config in techniques:
            callbacks += technique.prepare(distiller.model, config).callbacks
        decay = keras.optimizers.schedules.CosineDecay(
            0.0, steps, warmup_target=student.rate, warmup_steps=steps // 20
        )
        distiller.compile(keras.optimizers.AdamW(decay, weight_decay=0.01, clipnorm=1.0))
        lessons = distiller.teach(data, self.work / f"lessons_{'_'.join(map(str, student.seen.values()))}")
        history = distiller.model.fit(lessons, epochs=student.epochs, callbacks=callbacks, verbose=2).history
        for technique, _ in techniques:
            technique.finish(distiller.model)
        return dict(history)

    def _without_dropout(self, path: Path) -> Any:
        model = load_model(path)
        for _, layer in keras_api.walk(model):
            if hasattr(layer, "rate"):
                layer.rate = 0.0
        return model

    def _prepare(self) -> None:
        """The teacher with a cut vocabulary, and both splits packed with it, unless they are there."""
        if self.data.exists():
            return
        recipe = Recipe.load(self._run / "recipe.toml")
        splits = {name: self._texts(recipe, name) for name in ("train", "validation")}
        whole = load_model(self._run / "baseline" / "model.keras")
        found = cut_vocabulary(whole, self._run / "data", texts=splits["train"].texts, least=LEAST)
        keras_api.save_model(found.model, self._teacher)
        np.save(self.work / "kept.npy", found.kept)
        tokenizer = parse_tokenizer(found.tokenizer.decode(), "the cut tokenizer")
        names, section = label_names(splits["train"]), recipe.data
        with replacing(self.data) as folder:
            folder.mkdir()
            save_tokenizer(tokenizer, folder / "tokenizer.json")
            for split, texts in splits.items():
                packing.write_pack(
                    folder,
                    split,
                    data=texts,
                    tokenizer=tokenizer,
                    max_length=section.max_length,
                    labels=names,
                    shards=4,
                    on_long=section.on_long,
                    seed=SEED,
                )

    def _texts(self, recipe: Recipe, split: str) -> Texts:
        return read_texts(str(getattr(recipe.data, split)), recipe.data.text_column, recipe.data.label_column)
