"""MiniLM-L6 on SST-2, physically smaller: accuracy on the full dev set, bytes, time beside the float SavedModel.

Students begin as the fine-tuned model without some layers, heads and neurons; they learn its logits and hidden
states.

    python -m benchmarks.shrink_sst2 RUN --work DIR [--students NAME ...]

RUN is the folder of a finished `tfopt run minilm-sst2`. Trainings that DIR holds already are not repeated.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.common import goal, paired, ratio, save, show
from tfopt import Distiller, Predictor, export, keras_api, shrink
from tfopt.data import batches as batching
from tfopt.files import size_of, write_json
from tfopt.runtime.saved_model import set_threads
from tfopt.tasks.base import widened
from tfopt.train.fit import seed_everything

BATCH, LENGTH, THREADS, ROUNDS, SEED = 32, 128, 2, 60, 7


class Student(NamedTuple):
    """What is taken out and how it is trained."""

    cut: dict[str, Any]
    epochs: int
    rate: float


STUDENTS = {
    "6 layers": Student({}, 0, 0.0),
    "3 layers": Student({"layers": [0, 2, 4]}, 2, 1e-4),
    "6 layers, half of heads and neurons": Student({"heads": 0.5, "neurons": 0.5}, 2, 1e-4),
    "2 layers, half the neurons": Student({"layers": [0, 1, 3, 4], "neurons": 0.5}, 3, 1e-4),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--work", type=Path, default=Path("shrink_sst2"))
    parser.add_argument("--students", nargs="*", default=list(STUDENTS))
    parser.add_argument("--train-only", action="store_true")
    arguments = parser.parse_args()
    set_threads(THREADS)  # before TensorFlow's first operation
    arguments.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments.run, arguments.work)
    for name in arguments.students:
        bench.train(name)
    if arguments.train_only:
        return
    files = {f"{name}, int8": bench.export(name) for name in arguments.students}
    rows = bench.measure({"float SavedModel": arguments.run / "baseline" / "saved_model", **files})
    show(rows)
    full = rows["float SavedModel"]["accuracy"]
    kept = {name: 100 * row["accuracy"] / full for name, row in rows.items()}
    faster = {name: row["faster"]["median"] for name, row in rows.items()}

    def best(values: dict[str, float], least: float) -> float:
        return max((value for name, value in values.items() if kept[name] >= least), default=0.0)

    smaller = {name: rows["float SavedModel"]["bytes"] / row["bytes"] for name, row in rows.items()}
    goals = [
        goal("times faster with 99 % of the accuracy", best(faster, 99), 10),
        goal("times faster with 97 % of the accuracy", best(faster, 97), 20),
        goal("times fewer bytes with 98 % of the accuracy", best(smaller, 98), 12),
    ]
    half = "6 layers, half of heads and neurons, int8"
    if half in rows:
        goals.append(
            goal("half the multiply-adds, times faster than int8", faster[half] / faster["6 layers, int8"], 1.7)
        )
    save(
        "shrink_sst2",
        {"threads": THREADS, "length": LENGTH, "files": rows, "trainings": bench.trainings(), "goals": goals},
    )


class Bench:
    """Trains, exports and measures students of one run's model."""

    def __init__(self, run: Path, work: Path) -> None:
        self.data, self.work, self.model_file = run / "data", work, run / "baseline" / "model.keras"

    def train(self, name: str) -> None:
        """Writes the student's model and how it was trained, unless they are there."""
        path, student = self._file(name), STUDENTS[name]
        if path.exists():
            return
        seed_everything("tf_keras", SEED)
        teacher = keras_api.load_model(self.model_file)
        if not student.cut:
            keras_api.save_model(teacher, path)
            return
        model = shrink(teacher, **student.cut, data=self._batches("train").take(32))
        for one in (model, teacher):
            for _, layer in keras_api.walk(one):
                if hasattr(layer, "rate"):
                    layer.rate = 0.0
        distiller = Distiller(
            model, teacher, logits=1.0, hidden=1.0, temperature=2.0, layers=self._mapping(student)
        )
        keras = keras_api.keras_module("tf_keras")
        data = self._batches("train", shuffle=True)
        steps = student.epochs * int(data.cardinality())
        decay = keras.optimizers.schedules.CosineDecay(
            0.0, steps, warmup_target=student.rate, warmup_steps=steps // 20
        )
        distiller.compile(keras.optimizers.AdamW(decay, weight_decay=0.01, clipnorm=1.0))
        started = time.perf_counter()
        history = distiller.model.fit(distiller.teach(data), epochs=student.epochs, verbose=2).history
        keras_api.save_model(distiller.finish(), path)
        seconds = round(time.perf_counter() - started)
        facts = {"cut": student.cut, "epochs": student.epochs, "rate": student.rate, "seconds": seconds}
        write_json(path.with_suffix(".json"), {**facts, "loss": history["loss"], "accuracy": self._accuracy(path)})

    def trainings(self) -> dict[str, Any]:
        return {p.stem: json.loads(p.read_text("utf-8")) for p in sorted(self.work.glob("*.json"))}

    def export(self, name: str) -> Path:
        """The student as a file of dynamic int8."""
        path = self._file(name).with_suffix(".tflite")
        samples = batching.samples(self.data, 64, "validation")
        export(keras_api.load_model(self._file(name)), path, "tflite", "dynamic_int8", representative=samples,
               lengths=[32, LENGTH])  # fmt: skip
        return path

    def measure(self, files: dict[str, Path]) -> dict[str, dict[str, Any]]:
        """Accuracy, bytes, and how many times faster than the first each is."""
        loaded = {name: Predictor.load(path, THREADS) for name, path in files.items()}
        sample = batching.samples(self.data, 1, "validation")
        inputs = {name: widened(sample[name], LENGTH) for name in ("input_ids", "attention_mask")}
        seconds = paired({n: lambda p=p: p.predict(inputs) for n, p in loaded.items()}, ROUNDS, warm_up=5)
        first = seconds[next(iter(files))]
        return {
            name: {
                "accuracy": self._accuracy(files[name]), "bytes": size_of(files[name]),
                "milliseconds": round(float(np.median(seconds[name]) * 1e3), 3),
                "faster": ratio(first, seconds[name]),
            }
            for name in files
        }  # fmt: skip

    def _mapping(self, student: Student) -> dict[int, int] | None:
        gone = student.cut.get("layers")
        return None if gone is None else dict(enumerate(i for i in range(6) if i not in gone))

    def _batches(self, split: str, shuffle: bool = False) -> Any:
        return batching.batches(self.data, BATCH, shuffle=shuffle, seed=SEED, split=split)

    def _accuracy(self, path: Path) -> float:
        """Percent of the dev set."""
        predictor, right, rows = Predictor.load(path), 0, 0
        for inputs, labels in batching.batches(self.data, 64, split="validation"):
            found = predictor.predict({k: v.numpy() for k, v in inputs.items()})
            right += int((next(iter(found.values())).argmax(1) == labels.numpy()).sum())
            rows += len(labels)
        return round(100 * right / rows, 2)

    def _file(self, name: str) -> Path:
        return self.work / f"{name.replace(' ', '_').replace(',', '')}.keras"


if __name__ == "__main__":
    main()
