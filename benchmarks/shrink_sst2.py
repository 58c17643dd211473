"""MiniLM-L6 on SST-2, smaller: accuracy on the full dev set, bytes, packed bytes, time beside the float SavedModel.

    python -m benchmarks.shrink_sst2 RUN --work DIR [--students NAME ...] [--peers]

RUN is the folder of a finished `tfopt run minilm-sst2`; `sst2_students` says what the students are. Trainings that
DIR holds already are not repeated. Each student is measured with the whole vocabulary and, where "cut" stands
behind its name, with that of the training texts alone. Speed needs no training, so two models with half the
multiply-adds are timed as they are cut. `--peers` times onnxruntime and OpenVINO with the unshrunk model in the
same turns, in the environment of `make bench-env`.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.common import goal, ratio, save, show
from benchmarks.runtimes import HEADS, in_turns, onnx_int8, onnx_runtime, openvino, openvino_int8
from benchmarks.sst2_students import STUDENTS, School
from tfopt import Predictor, archive, export, shrink
from tfopt._base.files import size_of
from tfopt._keras.loading import load_model
from tfopt.data import batches as batching
from tfopt.runtime.saved_model import set_threads
from tfopt.tasks.base import widened

LENGTH, THREADS, ROUNDS, CALIBRATION = 128, 2, 30, 64
FLOAT, UNSHRUNK = "float SavedModel", "6 layers, int8"
PEERS = ("onnxruntime int8", "OpenVINO int8 (NNCF)")
HALF = {"3 of 6 layers": {"layers": 3}, "half of heads and neurons": {"heads": 0.5, "neurons": 0.5}}


class File(NamedTuple):
    """An artifact and the data in its vocabulary."""

    path: Path
    data: Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--work", type=Path, default=Path("shrink_sst2"))
    parser.add_argument("--students", nargs="*", default=list(STUDENTS))
    parser.add_argument("--train-only", action="store_true")
    parser.add_argument("--peers", action="store_true")
    arguments = parser.parse_args()
    set_threads(THREADS)  # before TensorFlow's first operation
    arguments.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments.run, arguments.work)
    for name in arguments.students:
        bench.school.train(name)
    if arguments.train_only:
        return
    files = bench.files(arguments.students)
    rows = bench.measure(files, bench.peers() if arguments.peers else {})
    show(rows)
    facts = {"threads": THREADS, "length": LENGTH, "files": rows, "trainings": bench.school.trainings()}
    save("shrink_sst2", {**facts, "goals": goals(rows)})


class Bench:
    """Exports and measures the students of one run's model."""

    def __init__(self, run: Path, work: Path) -> None:
        self._run, self._work, self.school = run, work, School(run, work)

    def files(self, students: list[str]) -> dict[str, File]:
        """The float model, its int8 file, and a file or two of each student."""
        found = {FLOAT: File(self._run / "baseline" / "saved_model", self._run / "data")}
        found[UNSHRUNK] = self._export("", "6_layers", whole=True)
        for name in students:
            label = self.school.file(name).stem
            title = f"{name}, int8" if STUDENTS[name].bits is None else name
            if STUDENTS[name].rank is None:
                found[title] = self._export(name, label, whole=True)
            found[f"{title}, cut"] = self._export(name, f"{label}_cut", whole=False)
        for title, cut in HALF.items():
            path = self._work / f"untrained_{title.replace(' ', '_')}.tflite"
            export(
                shrink(self.school.model("", True), **cut),
                path,
                format="tflite",
                quantization="dynamic_int8",
                lengths=[32, LENGTH],
            )
            found[f"untrained, {title}"] = File(path, self._run / "data")
        return found

    def _export(self, name: str, label: str, whole: bool) -> File:
        data, path = (self._run / "data") if whole else self.school.data, self._work / f"{label}.tflite"
        samples = batching.samples(data, CALIBRATION, split="validation")
        trained = name in STUDENTS and STUDENTS[name].bits is not None
        kind = "trained" if trained else "dynamic_int8"
        model = self.school.model(name, whole)
        export(model, path, format="tflite", quantization=kind, representative=samples, lengths=[32, LENGTH])
        return File(path, data)

    def peers(self) -> dict[str, Callable[[], Any]]:
        """The unshrunk model on other runtimes."""
        from benchmarks.onnx_bert import write_onnx

        path = self._work / "model.onnx"
        write_onnx(load_model(self._run / "baseline" / "model.keras"), path, HEADS, LENGTH)
        rows = batching.samples(self._run / "data", CALIBRATION, split="train")
        inputs = {n: widened(rows[n], LENGTH).astype(np.int64) for n in ("input_ids", "attention_mask")}
        each = [{name: value[i : i + 1] for name, value in inputs.items()} for i in range(CALIBRATION)]
        quantized = onnx_int8(path, self._work / "int8.onnx")
        runs = (onnx_runtime(quantized, each[0], THREADS), openvino(openvino_int8(path, each), each[0], THREADS))
        return dict(zip(PEERS, runs, strict=True))

    def measure(self, files: dict[str, File], peers: dict[str, Callable[[], Any]]) -> dict[str, dict[str, Any]]:
        """Accuracy, bytes, packed bytes, and how many times faster than the first each is."""
        runs = dict(peers)
        for name, file in files.items():
            predictor, sample = (
                Predictor.load(file.path, threads=THREADS),
                batching.samples(file.data, 1, split="validation"),
            )
            inputs = {key: widened(sample[key], LENGTH) for key in ("input_ids", "attention_mask")}
            runs[name] = lambda p=predictor, i=inputs: p.predict(i)
        seconds = in_turns(runs, ROUNDS)
        rows: dict[str, dict[str, Any]] = {}
        for name in runs:
            rows[name] = {
                "milliseconds": round(float(np.median(seconds[name]) * 1e3), 3),
                "faster": ratio(seconds[FLOAT], seconds[name]),
            }
            if name in files:
                packed = archive.sizes(files[name].path)
                rows[name] |= {
                    "accuracy": self._accuracy(files[name]), "bytes": size_of(files[name].path),
                    "packed_bytes": packed.packed_bytes, "entropy_bytes": packed.entropy_bytes,
                }  # fmt: skip
        return rows

    def _accuracy(self, file: File) -> float:
        """Percent of the dev set."""
        predictor, right, rows = Predictor.load(file.path), 0, 0
        for inputs, labels in batching.batches(file.data, 64, split="validation"):
            found = predictor.predict({k: v.numpy() for k, v in inputs.items()})
            right += int((next(iter(found.values())).argmax(1) == labels.numpy()).sum())
            rows += len(labels)
        return round(100 * right / rows, 2)


def goals(rows: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The issue's list: what was asked for, what was reached."""
    full = rows[FLOAT]
    ours = {name: row for name, row in rows.items() if "accuracy" in row}
    kept = {name: 100 * row["accuracy"] / full["accuracy"] for name, row in ours.items()}
    faster = {name: rows[name]["faster"]["median"] for name in rows}

    def best(values: dict[str, float], least: float) -> float:
        return max((value for name, value in values.items() if kept[name] >= least), default=0.0)

    speed = {name: faster[name] for name in ours}
    smaller, packed = (
        {n: full["bytes"] / row[key] for n, row in ours.items()} for key in ("bytes", "packed_bytes")
    )
    found = [
        goal("times faster with 99 % of the accuracy", best(speed, 99), 10),
        goal("times faster with 97 % of the accuracy", best(speed, 97), 20),
        goal("times fewer bytes with 98 % of the accuracy", best(smaller, 98), 12),
        goal("times fewer packed bytes with 98 % of the accuracy", best(packed, 98), 25),
    ]
    found += [goal(f"times faster than {p} with 99 %", best(speed, 99) / faster[p], 2) for p in PEERS if p in rows]
    for title in HALF:
        half = faster[f"untrained, {title}"] / faster[UNSHRUNK]
        found.append(goal(f"{title}: times faster than int8 unshrunk", half, 1.7))
    for zeros, least in ((60, 99), (80, 97)):
        if f"6 layers, {zeros} % zeros, int8" in rows:
            found.append(
                goal(f"percent kept with {zeros} % zeros", kept[f"6 layers, {zeros} % zeros, int8"], least)
            )
    return found


if __name__ == "__main__":
    main()
