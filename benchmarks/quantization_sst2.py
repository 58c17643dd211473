"""MiniLM-L6 on SST-2 (full dev set): accuracy and bytes of every quantized file, trained and post-training.

Trainings start from the float model and are taught its own logits, without dropout: labels would go on moving a
model that has already converged, by about a point of dev accuracy whichever the rounding.

    python -m benchmarks.quantization_sst2 RUN --work DIR

RUN is the folder of a finished `tfopt run minilm-sst2`. Trainings that DIR holds already are not repeated.
"""

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.common import goal, save, show
from tfopt import Predictor, export
from tfopt._keras import keras_api
from tfopt._keras.loading import load_model
from tfopt.compress import quantize
from tfopt.data import batches as batching
from tfopt.quantization import NAMED, QuantizeConfig
from tfopt.quantization.sensitivity import measure_sensitivity
from tfopt.train.fit import seed_everything

BATCH, SAMPLES = 32, 128


class Training(NamedTuple):
    """A quantization-aware training."""

    title: str
    config: QuantizeConfig
    rate: float
    steps: int
    seed: int


TRAININGS = {
    "q8": Training("int8 dynamic", QuantizeConfig(), 1e-5, 600, 8),
    "q4": Training("int4 channel", QuantizeConfig(weight_bits=4, weight_scale="mse"), 1e-5, 600, 7),
    "s8": Training("int8 static", QuantizeConfig(activations="static", freeze_after=960), 3e-5, 1200, 7),
}
NEAREST4 = QuantizeConfig(weight_bits=4)
POST_TRAINING: dict[str, Any] = {
    "float32": None,
    "float16": "float16",
    "int8 dynamic": "dynamic_int8",
    "int4 channel, nearest": NEAREST4,
    "int4 channel, clipped": "dynamic_int4",
    "int4 channel, GPTQ": dataclasses.replace(NAMED["dynamic_int4"], rounding="gptq"),
    "int4 block 32, clipped": "dynamic_int4_block32",
    "int4 block 32, GPTQ": dataclasses.replace(NAMED["dynamic_int4_block32"], rounding="gptq"),
    "int8 static": "int8",
    "int16 static": "int16",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--work", type=Path, default=Path("quantization_sst2"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments.run, arguments.work)
    rows = bench.post_training(POST_TRAINING) | bench.mixed() | bench.trained()
    show(rows)
    base = rows["float32"]
    lost = {name: base["accuracy"] - row["accuracy"] for name, row in rows.items()}
    goals = [
        goal("8-bit training, points lost", lost["int8 dynamic, trained"], 0.3, True),
        goal("4-bit training, points lost", lost["int4 channel, trained"], 1.0, True),
        goal("static int8 training, points lost", lost["int8 static, trained"], 1.0, True),
        goal("int4 rounded to nearest loses more than trained, points",
             lost["int4 channel, nearest"] - lost["int4 channel, trained"], 0.5),
        goal("dynamic int8, share of float bytes", rows["int8 dynamic"]["bytes"] / bench.float_bytes, 0.26, True),
        goal("int4, share of float bytes", rows["int4 channel, trained"]["bytes"] / bench.float_bytes, 0.15, True),
    ]  # fmt: skip
    facts = {"float_bytes": bench.float_bytes, "files": rows, "trainings": bench.trainings, "goals": goals}
    save("quantization_sst2", facts)


class Bench:
    """Exports and measures on one run's model and data."""

    def __init__(self, run: Path, work: Path) -> None:
        self.data, self.work, self.model_file = run / "data", work, run / "baseline" / "model.keras"
        self.samples = batching.samples(self.data, SAMPLES, split="train", balanced=True)
        saved = run / "baseline" / "saved_model"  # what every report compares with
        self.float_bytes = sum(file.stat().st_size for file in saved.rglob("*") if file.is_file())
        self.trainings: dict[str, Any] = {}

    def post_training(self, kinds: dict[str, Any]) -> dict[str, dict[str, Any]]:
        model = load_model(self.model_file)
        return {name: self._measure(model, quantization) for name, quantization in kinds.items()}

    def mixed(self) -> dict[str, dict[str, Any]]:
        """Bits by layer: the table of what each loses, and the best choice for the bytes half way to 4 bits."""
        model = load_model(self.model_file)
        table = measure_sensitivity(model, self.samples)
        table.save(self.work / "sensitivity.json")
        print(table.text())
        sizes = {bits: sum(r.bytes for r in table.rows if r.bits == bits) for bits in (8, 4)}
        chosen = table.within_bytes((sizes[8] + sizes[4]) // 2)
        return {"int8 and int4 by sensitivity": self._measure(model, chosen)}

    def trained(self) -> dict[str, dict[str, Any]]:
        return {f"{t.title}, trained": self._measure(self._train(n, t), "trained") for n, t in TRAININGS.items()}

    def _train(self, name: str, training: Training) -> Any:
        path = self.work / f"{name}.keras"
        if not path.exists():
            seed_everything("tf_keras", training.seed)
            model, teacher = (load_model(self.model_file) for _ in range(2))
            for _, layer in keras_api.walk(model):
                if hasattr(layer, "rate"):
                    layer.rate = 0.0
            prepared = quantize.prepare(model, training.config)
            keras = keras_api.keras_module("tf_keras")
            decay = keras.optimizers.schedules.CosineDecay(training.rate, training.steps)
            model.compile(keras.optimizers.AdamW(decay, weight_decay=0.01, clipnorm=1.0), "mse")
            data = batching.batches(self.data, BATCH, shuffle=True, seed=training.seed, split="train")
            taught = data.take(training.steps).map(lambda inputs, _: (inputs, teacher(inputs, training=False)))
            started = time.perf_counter()
            history = model.fit(taught, callbacks=prepared.callbacks, verbose=2).history
            self.trainings[name] = {
                **dataclasses.asdict(training.config), "rate": training.rate, "steps": training.steps,
                "seed": training.seed, "loss": history["loss"][-1], "seconds": round(time.perf_counter() - started),
            }  # fmt: skip
            keras_api.save_model(quantize.finish(model), path)
        return load_model(path)

    def _measure(self, model: Any, quantization: Any) -> dict[str, Any]:
        path = self.work / "model.tflite"
        artifact = export(
            model, path, format="tflite", quantization=quantization, representative=self.samples, lengths=[32, 128]
        )  # fmt: skip
        predictor = Predictor.load(path)
        right, rows = 0, 0
        for inputs, labels in batching.batches(self.data, 64, split="validation"):
            found = predictor.predict({k: v.numpy() for k, v in inputs.items()})
            right += int((next(iter(found.values())).argmax(1) == labels.numpy()).sum())
            rows += len(labels)
        kept = [c for c in artifact.checks if c.name in ("gptq", "calibration", "float_operators")]
        return {
            "accuracy": round(100 * right / rows, 2), "rows": rows, "bytes": path.stat().st_size,
            "agreement": None if artifact.agreement is None else float(np.round(artifact.agreement, 4)),
            **{c.name: c.found for c in kept},
        }  # fmt: skip


if __name__ == "__main__":
    main()
