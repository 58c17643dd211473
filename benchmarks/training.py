"""Training: the loop here against `model.fit`, batches in parts, and two workers against one.

An encoder of six layers learns on random ids. The first contestants take turns in one process, a pass each; workers
are processes of their own, one core each, in turns as well.

    python -m benchmarks.training
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import goal, paired, ratio, save, show
from tfopt.run.launch import free_addresses

BATCH, LENGTH, VOCABULARY = 32, 64, 2000
SETTINGS = {
    "vocab_size": VOCABULARY, "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4,
    "intermediate_size": 1024, "max_position_embeddings": LENGTH, "hidden_dropout_prob": 0.1,
}  # fmt: skip
GENERATIONS = ("tf_keras", "keras")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        print(json.dumps(_worker(given.worker, given.rounds)))
        return
    rows: dict[str, Any] = {}
    goals = []
    for generation in GENERATIONS:
        seconds = paired(_in_turns(generation), given.rounds, warm_up=2)
        rows[generation] = {
            "ms a step of model.fit": round(float(np.median(seconds["fit"])) / _STEPS * 1e3, 1),
            "here / fit": ratio(seconds["here"], seconds["fit"]),
            "4 parts / 1, per example": ratio(seconds["4 parts"], seconds["here"]),
        }
        alone, both = _workers(generation, given.rounds)
        rows[generation]["one worker / two"] = ratio(alone, both)
        goals += [
            goal(f"{generation}: here / model.fit", rows[generation]["here / fit"]["median"], 1.02, at_most=True),
            goal(
                f"{generation}: accumulate 4 / 1, per example",
                rows[generation]["4 parts / 1, per example"]["median"], 1.05, at_most=True,
            ),
            goal(f"{generation}: two workers", rows[generation]["one worker / two"]["median"], 1.7),
        ]  # fmt: skip
        show(rows[generation])
    save("training", {"rows": rows, "goals": goals})


_STEPS = 4  # of a batch of 32 in a pass, or one of four times as many


def _model(generation: str, strategy: Any = None) -> tuple[Any, Callable[..., None]]:
    from tfopt._keras import keras_api
    from tfopt.models import BertConfig, bert
    from tfopt.train.strategy import scope

    keras = keras_api.keras_module(generation)
    keras.utils.set_random_seed(0)
    with scope(strategy):
        model = bert(BertConfig(**SETTINGS), 2, generation=generation)

    def compile_with(optimizer: Any, jit_compile: bool = False) -> None:
        model.compile(
            optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
        )  # fmt: skip

    return model, compile_with


def _data(batch: int, steps: int) -> Any:
    import tensorflow as tf

    rng = np.random.default_rng(0)
    ids = rng.integers(3, VOCABULARY, (batch * steps, LENGTH)).astype(np.int32)
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    return tf.data.Dataset.from_tensor_slices((inputs, rng.integers(0, 2, len(ids)))).batch(batch)


def _in_turns(generation: str) -> dict[str, Callable[[], None]]:
    """Name -> does one pass of a training that goes on in a thread of its own."""
    from tfopt._keras import keras_api

    class Gate(keras_api.Callback):
        """Lets each pass begin when it is asked for."""

        def __init__(self) -> None:
            self.begin, self.ended = threading.Semaphore(0), threading.Semaphore(0)
            self._supports_tf_logs = True

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.begin.acquire()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.ended.release()

        def one_pass(self) -> None:
            self.begin.release()
            self.ended.acquire()

    def start(work: Callable[[Any], None]) -> Callable[[], None]:
        gate = Gate()
        threading.Thread(target=work, args=(gate,), daemon=True).start()
        return gate.one_pass

    return {
        "fit": start(lambda gate: _plain(generation, gate)),
        "here": start(lambda gate: _ours(generation, gate, accumulate=1)),
        "4 parts": start(lambda gate: _ours(generation, gate, accumulate=4)),
    }


_PASSES = 10_000  # more than anybody asks for; the threads end with the program


def _plain(generation: str, gate: Any) -> None:
    from tfopt._keras import keras_api

    keras = keras_api.keras_module(generation)
    model, compile_with = _model(generation)
    rate = keras.optimizers.schedules.CosineDecay(1e-4, _PASSES * _STEPS)
    compile_with(keras.optimizers.AdamW(rate, weight_decay=0.01, global_clipnorm=1.0))
    model.fit(_data(BATCH, _STEPS), epochs=_PASSES, callbacks=[gate], verbose=0)


def _ours(generation: str, gate: Any, accumulate: int, strategy: Any = None, passes: int = _PASSES) -> None:
    from tfopt.train import TrainConfig, fit

    model, compile_with = _model(generation, strategy)
    data = _data(BATCH * accumulate, _STEPS // accumulate)
    config = TrainConfig(
        epochs=passes, batch_size=BATCH * accumulate, accumulate=accumulate, learning_rate=1e-4, warmup=0.0
    )
    fit(
        model, lambda number, skip: data, config=config, steps=passes * _STEPS // accumulate, callbacks=[gate],
        strategy=strategy, compile_with=compile_with,
    )  # fmt: skip


def _workers(generation: str, rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of passes by one worker and by two, one core each, of the same batches."""
    found: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(3):
        for count in (1, 2):
            found[count] += _passes_of(generation, count, rounds // 3 + 1)
    return np.array(found[1]), np.array(found[2])


def _passes_of(generation: str, workers: int, rounds: int) -> list[float]:
    from tfopt._base.cluster import Cluster

    cluster = Cluster(free_addresses(workers), 0)
    started = []
    for number in range(workers):
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        if workers > 1:
            environment["TF_CONFIG"] = cluster.for_worker(number)
        command = [sys.executable, "-m", "benchmarks.training", "--worker", generation, "--rounds", str(rounds)]
        process = subprocess.Popen(
            ["taskset", "-c", str(number), *command], env=environment, cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        started.append(process)
    said = [process.communicate(timeout=600)[0] for process in started]
    seconds: list[float] = json.loads(said[0].splitlines()[-1])
    return seconds


def _worker(generation: str, rounds: int) -> list[float]:
    """What a worker does: seconds of each pass but the first two."""
    from tfopt._keras import keras_api
    from tfopt.train import make_strategy

    strategy = make_strategy()
    seconds: list[float] = []

    class Clock(keras_api.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.started = time.perf_counter()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            seconds.append(time.perf_counter() - self.started)

    _ours(generation, Clock(), accumulate=1, strategy=strategy, passes=rounds + 2)
    return seconds[2:]


if __name__ == "__main__":
    main()
