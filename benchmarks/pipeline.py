"""A pipeline of two stages on two cores against the model on one core, training and answering.

An encoder of six layers on random ids; processes of their own take turns, with one thread for each core.

    python -m benchmarks.pipeline
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import goal, ratio, save, show
from benchmarks.training import BATCH, GENERATIONS, LENGTH, SETTINGS, VOCABULARY

MICRO_BATCHES, STAGES = 8, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(_child(given.child[0], int(given.child[1]))))
        return
    rows: dict[str, Any] = {}
    goals = []
    for generation in GENERATIONS:
        runs: dict[int, list[dict[str, Any]]] = {1: [], STAGES: []}
        for _ in range(given.rounds):
            for stages, found in runs.items():
                found.append(_measured(generation, stages))
        seconds = {
            (stages, kind): np.array([s for run in found for s in run[kind]])
            for stages, found in runs.items()
            for kind in ("train", "answer")
        }
        faster = {kind: ratio(seconds[1, kind], seconds[STAGES, kind]) for kind in ("train", "answer")}
        rows[generation] = {
            "ms a step on one core": round(float(np.median(seconds[1, "train"])) * 1e3, 1),
            "one core / pipeline, training": faster["train"], "one core / pipeline, answering": faster["answer"],
            "idle share by the schedule": round(runs[STAGES][0]["idle_share"], 3),
            "idle share measured": round(1 - faster["train"]["median"] / STAGES, 3),
        }  # fmt: skip
        goals.append(goal(f"{generation}: pipeline of two stages", faster["train"]["median"], 1.5))
        show(rows[generation])
    save("pipeline", {"rows": rows, "goals": goals})


def _measured(generation: str, stages: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.pipeline", "--child", generation, str(stages)]
    done = subprocess.run(
        ["taskset", "-c", ",".join(map(str, range(stages))), *command],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE,
        text=True, check=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _child(generation: str, stages: int, steps: int = 8) -> dict[str, Any]:
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(stages)
    from tfopt._keras import keras_api
    from tfopt._keras.devices import devices
    from tfopt.models import BertConfig, bert
    from tfopt.parallel.pipeline import Pipeline
    from tfopt.parallel.stages import placed
    from tfopt.train.parts import Part
    from tfopt.train.step import TrainStep

    names = devices(stages, "stages")
    keras = keras_api.keras_module(generation)
    keras.utils.set_random_seed(0)
    model = bert(BertConfig(**SETTINGS), 2, generation=generation)
    network: Any = None
    if stages > 1:
        model = placed(model, names)
        network = Pipeline(model, [names], micro_batches=MICRO_BATCHES)
    model.compile(keras.optimizers.AdamW(1e-4), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.optimizer.build(model.trainable_variables)
    step = TrainStep(
        model, strategy=None, part_rows=None, clipping=("global_norm", 1.0), jit_compile=False, network=network
    )
    ids = tf.constant(np.random.default_rng(0).integers(3, VOCABULARY, (BATCH, LENGTH)), tf.int32)
    x, y = {"input_ids": ids, "attention_mask": tf.ones_like(ids)}, tf.zeros(BATCH, tf.int32)
    parts = (Part((x, y), tf.constant(BATCH), tf.constant(BATCH)),)
    step.expect(tf.nest.map_structure(tf.TensorSpec.from_tensor, parts))
    answer = network.predict if network else tf.function(lambda x: model(x, training=False), autograph=False)

    def seconds_of(work: Any) -> list[float]:
        found = []
        for _ in range(steps + 2):
            start = time.perf_counter()
            work()
            found.append(time.perf_counter() - start)
        return found[2:]

    return {
        "train": seconds_of(lambda: float(step(parts).loss)),
        "answer": seconds_of(lambda: tf.nest.map_structure(np.asarray, answer(x))),
        "idle_share": network.idle_share if network else 0.0,
    }


if __name__ == "__main__":
    main()
