"""What quantization costs and brings in time: a training step, and int4 files beside int8.

    python -m benchmarks.quantization_speed

A 6-layer, 384-wide encoder (the shape of MiniLM) with random weights, batches of 32 sequences of 32 tokens to
train on, one sequence of 128 tokens to time files with; everything interleaved in one process.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

import tfopt
from benchmarks.common import goal, milliseconds, paired, ratio, save, show
from tfopt.models import BertConfig, bert

CONFIG = BertConfig(vocab_size=30522)
TRAININGS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "8 bit, dynamic activations": {},
    "4 bit, dynamic activations": {"weight_bits": 4},
    "8 bit, static activations, attention and norms": {"activations": "static"},
}
FILES = ("dynamic_int8", "dynamic_int4", "dynamic_int4_block32", "dynamic_int4_block128", None)


def main() -> None:
    steps = paired({name: _step(settings) for name, settings in TRAININGS.items()}, rounds=16, warm_up=3)
    training = {name: {"ms": milliseconds(v), "to plain": ratio(v, steps["plain"])} for name, v in steps.items()}
    show(training)
    files: dict[str, Any] = {}
    goals = [
        goal(f"training step, {name}", row["to plain"]["median"], 1.4, True)
        for name, row in training.items()
        if name.startswith("8 bit")
    ]
    with tempfile.TemporaryDirectory() as folder:
        model = bert(CONFIG, 2)
        for name in FILES:
            tfopt.export(model, Path(folder, f"{name}.tflite"), format="tflite", quantization=name, lengths=[128])
        for threads in (1, 2):
            calls = {str(name): _call(Path(folder, f"{name}.tflite"), threads) for name in FILES}
            seconds = paired(calls, rounds=100, warm_up=10)
            files[f"{threads} threads"] = {
                name: {"ms": milliseconds(v), "to int8": ratio(v, seconds["dynamic_int8"])}
                for name, v in seconds.items()
            }
            figure = files[f"{threads} threads"]["dynamic_int4"]["to int8"]["median"]
            goals.append(goal(f"int4 by int8, {threads} threads", figure, 1.05, True))
    show(files)
    save("quantization_speed", {"training_step": training, "files": files, "goals": goals})


def _step(settings: dict[str, Any] | None) -> Callable[[], Any]:
    model = bert(CONFIG, 2)
    if settings is not None:
        tfopt.quantize_aware(model, **settings)
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf_keras.optimizers.AdamW(1e-5, global_clipnorm=1.0), loss)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, CONFIG.vocab_size, (32, 32)).astype(np.int32)
    data = tf.data.Dataset.from_tensors(
        ({"input_ids": ids, "attention_mask": np.ones_like(ids)}, rng.integers(0, 2, 32))
    ).repeat()
    batches, step = iter(data), model.make_train_function()
    return lambda: {name: float(value) for name, value in step(batches).items()}


def _call(path: Path, threads: int) -> Callable[[], Any]:
    predictor = tfopt.Predictor.load(path, threads=threads)
    ids = np.random.default_rng(1).integers(0, CONFIG.vocab_size, (1, 128)).astype(np.int32)
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    return lambda: predictor.predict(inputs)


if __name__ == "__main__":
    main()
