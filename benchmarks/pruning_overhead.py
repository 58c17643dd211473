"""What pruning costs per training step, ours and tensorflow-model-optimization's.

A 6-layer, 384-wide encoder, batch 32, length 48, in `model.fit`. One process trains four copies in turns:
plain, with masks updated every 100 steps, with masks updated at every step, and wrapped by the toolkit (its
wrappers take layers, not operations, so that copy is made of the layers that it supports: the same Dense
layers in the same order, without attention's products and the residual adds, and its own plain twin).

    python -m benchmarks.pruning_overhead
"""

import argparse
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from benchmarks.common import goal, milliseconds, paired, ratio, save, show
from tfopt.callbacks import MagnitudePruning
from tfopt.models import BertConfig, bert
from tfopt.schedules import ConstantSparsity

BATCH, LENGTH = 32, 48
FEW, MANY = 5, 25  # steps of a turn; updates every 100 steps need many to be seen


def data(inputs: Any, steps: int) -> Any:
    labels = np.random.default_rng(1).integers(0, 2, BATCH)
    return tf.data.Dataset.from_tensors((inputs, labels)).repeat(steps)


def compiled(model: Any) -> Any:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-4), loss)
    return model


def encoder() -> Any:
    return compiled(bert(BertConfig(30522, hidden_dropout_prob=0.0), 2))


def dense_stack() -> list[Any]:
    layers = [keras.layers.Input((LENGTH, 384))]
    for _ in range(6):
        layers += [keras.layers.Dense(384) for _ in range(4)]
        layers += [keras.layers.Dense(1536, activation="gelu"), keras.layers.Dense(384)]
    return [*layers, keras.layers.GlobalAveragePooling1D(), keras.layers.Dense(2)]


def trainer(model: Any, batches: Any, callbacks: list[Any]) -> Any:
    return lambda: model.fit(batches, epochs=1, verbose=0, callbacks=callbacks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    rounds = parser.parse_args().rounds
    from tensorflow_model_optimization.python.core.sparsity.keras import prune, pruning_callbacks
    from tensorflow_model_optimization.python.core.sparsity.keras import pruning_schedule as toolkit

    rng = np.random.default_rng(0)
    ids = rng.integers(0, 30522, (BATCH, LENGTH)).astype(np.int32)
    tokens = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    vectors = data(rng.standard_normal((BATCH, LENGTH, 384)).astype(np.float32), FEW)

    def ours(frequency: int) -> list[Any]:
        return [MagnitudePruning(ConstantSparsity(0.5, 0, frequency=frequency))]

    def stack() -> Any:
        return compiled(keras.Sequential(dense_stack()))

    wrapped = prune.prune_low_magnitude(
        keras.Sequential(dense_stack()), toolkit.ConstantSparsity(0.5, 0, frequency=1)
    )
    long = paired({
        "plain, long": trainer(encoder(), data(tokens, MANY), []),
        "ours, every 100 steps": trainer(encoder(), data(tokens, MANY), ours(100)),
    }, rounds)  # fmt: skip
    short = paired({
        "plain": trainer(encoder(), data(tokens, FEW), []),
        "ours, every step": trainer(encoder(), data(tokens, FEW), ours(1)),
        "dense stack, plain": trainer(stack(), vectors, []),
        "dense stack, ours, every step": trainer(stack(), vectors, ours(1)),
        "dense stack, toolkit, every step": trainer(
            compiled(wrapped), vectors, [pruning_callbacks.UpdatePruningStep()]
        ),
    }, rounds)  # fmt: skip
    seconds = {name: s / MANY for name, s in long.items()} | {name: s / FEW for name, s in short.items()}
    stacks = seconds["dense stack, plain"]
    # Only every fourth turn holds an update of the masks, so the median alone would leave it out.
    total = float(long["ours, every 100 steps"].sum() / long["plain, long"].sum())
    ratios: dict[str, Any] = {
        "ours, every 100 steps / plain": ratio(seconds["ours, every 100 steps"], seconds["plain, long"]),
        "ours, every 100 steps / plain, sum of all turns": round(total, 4),
        "ours, every step / plain": ratio(seconds["ours, every step"], seconds["plain"]),
        "dense stack, ours, every step / plain": ratio(seconds["dense stack, ours, every step"], stacks),
        "dense stack, toolkit, every step / plain": ratio(seconds["dense stack, toolkit, every step"], stacks),
    }
    steps = {name: milliseconds(s) for name, s in seconds.items()}
    show({f"{n} [ms/step]": v for n, v in steps.items()} | ratios)
    goals = [
        goal("pruning every 100 steps / plain", total, 1.03, True),
        goal("pruning every step / plain", ratios["ours, every step / plain"]["median"], 1.10, True),
    ]
    save("pruning_overhead", {"steps_ms": steps, "ratios": ratios, "goals": goals, "rounds": rounds})


if __name__ == "__main__":
    main()
