"""Loading a gigabyte of weights from a store, and checkpoints while a model trains.

python -m benchmarks.weights
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfopt
from benchmarks.common import goal, milliseconds, paired, ratio, save, show
from tfopt.callbacks import Checkpoints
from tfopt.models import BertConfig, bert

SIDE, LAYERS = 4096, 16
EVERY = 50


def large() -> Any:
    return keras.Sequential([keras.Input((SIDE,)), *(keras.layers.Dense(SIDE) for _ in range(LAYERS))])


def read(path: Path) -> None:
    """Every byte of a file, as a program would read it."""
    path.read_bytes()


def read_into(path: Path, memory: bytearray) -> None:
    """Every byte of a file, into memory that was used before."""
    with path.open("rb") as file:
        file.readinto(memory)


def loading(folder: Path, rounds: int) -> dict[str, np.ndarray]:
    model = large()
    store = tfopt.store.save(model, folder / "store")
    model.save_weights(folder / "m.weights.h5")
    files = sorted(store.folder.glob("*.safetensors"))
    memory = bytearray(max(file.stat().st_size for file in files))
    return paired({
        "reading": lambda: [read(file) for file in files],
        "reading into used memory": lambda: [read_into(file, memory) for file in files],
        "store": lambda: tfopt.store.load(model, folder / "store"),
        "store, mapped": lambda: tfopt.store.load(model, folder / "store", mapped=True),
        "load_weights": lambda: model.load_weights(folder / "m.weights.h5"),
    }, rounds)  # fmt: skip


class Clock(keras.callbacks.Callback):
    """Seconds of every `EVERY` steps."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = 0.0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if batch % EVERY == 0:
            self._began = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if (batch + 1) % EVERY == 0:
            self.seconds.append(time.perf_counter() - self._began)


def training(folder: Path, rounds: int) -> dict[str, np.ndarray]:
    """Stretches of `EVERY` steps of an encoder of 7 million weights, by turns with checkpoints and without.

    A stretch begins with the copy that the checkpoint of the one before made necessary, and with its writing.
    """
    model = bert(
        BertConfig(8000, 256, 6, num_attention_heads=4, intermediate_size=1024, hidden_dropout_prob=0.0),
        2,
        generation="keras",
    )
    model.compile("adamw", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    ids = np.random.default_rng(0).integers(1, 8000, (16, 64))
    batch = ({"input_ids": ids, "attention_mask": np.ones_like(ids)}, np.arange(16) % 2)
    data = tf.data.Dataset.from_tensors(batch).repeat(2 * EVERY)
    found: dict[str, list[float]] = {"without": [], "with": []}
    model.fit(data, verbose=0)
    for _ in range(rounds):
        for name in found:
            clock = Clock()
            kept = [Checkpoints(folder / "checkpoints", every=EVERY)] if name == "with" else []
            model.fit(data, callbacks=[*kept, clock], verbose=0)
            found[name].append(sum(clock.seconds))
    return {name: np.array(values) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        seconds = loading(Path(name), arguments.rounds)
        steps = training(Path(name), arguments.rounds)
    ratios = {
        "store / reading": ratio(seconds["store"], seconds["reading"]),
        "store / reading into used memory": ratio(seconds["store"], seconds["reading into used memory"]),
        "load_weights / store": ratio(seconds["load_weights"], seconds["store"]),
        "load_weights / store, mapped": ratio(seconds["load_weights"], seconds["store, mapped"]),
        "steps with checkpoints / without": ratio(steps["with"], steps["without"]),
    }
    times = {name: milliseconds(values) for name, values in {**seconds, **steps}.items()}
    show({f"{name} [ms]": value for name, value in times.items()} | ratios)
    goals = [
        goal("store / reading", ratios["store / reading"]["median"], 1.3, at_most=True),
        goal("load_weights / store", ratios["load_weights / store"]["median"], 4),
        goal("load_weights / store, mapped", ratios["load_weights / store, mapped"]["median"], 4),
        goal("steps with checkpoints", ratios["steps with checkpoints / without"]["median"], 1.05, at_most=True),
    ]
    save(
        "weights", {"bytes": LAYERS * (SIDE * SIDE + SIDE) * 4, "times_ms": times, "ratios": ratios, "goals": goals}
    )


if __name__ == "__main__":
    main()
