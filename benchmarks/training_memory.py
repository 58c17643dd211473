"""Memory and time of training steps: plain, with gradient checkpointing, in parts; and what was foretold of it.

Encoders learn on random ids, each case in processes of its own, in turns. Activations are what the process holds at
most while it takes steps on whole batches, beyond what it held after one step on a single short row.

    python -m benchmarks.training_memory
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

LAYERS, BATCH, LENGTH, WIDTH = 12, 16, 128, 256
CASES: dict[str, dict[str, Any]] = {
    "plain": {}, "checkpointing": {"gradient_checkpointing": True}, "4 parts": {"accumulate": 4},
}  # fmt: skip
GENERATIONS = ("tf_keras", "keras")
SETTINGS = {
    "vocab_size": 2000, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
    "intermediate_size": 4 * WIDTH, "max_position_embeddings": LENGTH, "hidden_dropout_prob": 0.1,
}  # fmt: skip
_STEPS = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(_child(*given.child)))
        return
    rows: dict[str, Any] = {}
    goals = []
    for generation in GENERATIONS:
        runs: dict[str, list[dict[str, Any]]] = {case: [] for case in CASES}
        for _ in range(given.rounds):
            for case, found in runs.items():
                found.append(_measured(generation, case))
        kinds = ("activations", "peak", "foretold")
        middle = {
            case: {kind: float(np.median([run[kind] for run in found])) for kind in kinds}
            for case, found in runs.items()
        }
        seconds = {case: np.array([s for run in found for s in run["seconds"]]) for case, found in runs.items()}
        saved = 1 - middle["checkpointing"]["activations"] / middle["plain"]["activations"]
        slower = ratio(seconds["checkpointing"], seconds["plain"])
        wrong = {case: found["foretold"] / found["peak"] - 1 for case, found in middle.items()}
        rows[generation] = {
            **{f"{case}: MB of activations": round(found["activations"] / 1e6) for case, found in middle.items()},
            **{f"{case}: peak MB": round(found["peak"] / 1e6) for case, found in middle.items()},
            **{f"{case}: foretold / measured": round(1 + value, 3) for case, value in wrong.items()},
            "checkpointing: activations saved": round(saved, 3), "checkpointing / plain, time": slower,
        }  # fmt: skip
        goals += [
            goal(f"{generation}: share of activations saved", saved, 0.4),
            goal(f"{generation}: time of checkpointing / plain", slower["median"], 1.4, at_most=True),
            goal(f"{generation}: foretold peak, off by", max(map(abs, wrong.values())), 0.25, at_most=True),
        ]
        show(rows[generation])
    save("training_memory", {"rows": rows, "goals": goals})


def _measured(generation: str, case: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.training_memory", "--child", generation, case]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        command, env=environment, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _child(generation: str, case: str) -> dict[str, Any]:
    import tensorflow as tf

    from tfopt._keras import keras_api
    from tfopt.models import BertConfig, bert
    from tfopt.structure.recompute import Recomputed
    from tfopt.train import TrainConfig, fit, memory

    estimate = memory.estimate_memory
    keras = keras_api.keras_module(generation)
    keras.utils.set_random_seed(0)
    model = bert(BertConfig(**SETTINGS), 2, generation=generation)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    config = TrainConfig(epochs=1, batch_size=BATCH, learning_rate=1e-4, **CASES[case])
    ids = np.random.default_rng(0).integers(3, 2000, (BATCH, LENGTH)).astype(np.int32)

    def batches(number: Any, skip: int) -> tf.data.Dataset:
        sizes = tf.data.Dataset.from_tensor_slices([1, *[BATCH] * _STEPS])

        def of(rows: tf.Tensor) -> Any:
            given = tf.constant(ids)[:rows, : tf.where(rows == 1, 4, LENGTH)]
            return {"input_ids": given, "attention_mask": tf.ones_like(given)}, tf.zeros(rows, tf.int32)

        return sizes.map(of)

    seen: dict[str, Any] = {"seconds": []}
    foretold: list[Any] = []

    def look(*given: Any, **settings: Any) -> Any:
        foretold.append(estimate(*given, **settings))
        return foretold[-1]

    memory.estimate_memory = look

    class Look(keras_api.Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            if batch == 1:
                seen["floor"] = _peak()
            self.started = time.perf_counter()

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if batch > 2:
                seen["seconds"].append(time.perf_counter() - self.started)

    fit(
        model, batches, config=config, steps=1 + _STEPS, callbacks=[Look()],
        network=Recomputed(model) if config.gradient_checkpointing else None,
        compile_with=lambda optimizer, jit_compile: model.compile(optimizer, loss), longest=LENGTH,
    )  # fmt: skip
    peak = _peak()
    return {
        "seconds": seen["seconds"], "activations": peak - seen["floor"], "peak": peak, "floor": seen["floor"],
        "foretold": foretold[0].peak,
    }  # fmt: skip


def _peak() -> int:
    """The most bytes that this process held."""
    from tfopt._base.memory import peak_memory_bytes

    peak = peak_memory_bytes()
    assert peak is not None
    return peak


if __name__ == "__main__":
    main()
