"""Checkpoints while a model trains: a training that is killed goes on as if nothing had been."""

import dataclasses
import logging
import os
import shutil
import signal
import time

import numpy as np
import pytest
import tensorflow as tf

import tfopt
from tfopt._base.children import WARM, ChildFailedError, run_in_child
from tfopt._keras import keras_api
from tfopt.callbacks import Checkpoints
from tfopt.compress import quantize
from tfopt.errors import InputError
from tfopt.train import TrainConfig, fit, make_strategy
from tfopt.train.strategy import scope

CONFIG = TrainConfig(epochs=3, batch_size=8, learning_rate=0.01, seed=1)
ROWS, STEPS = 200, 75


def build(generation, strategy=None):
    keras = keras_api.keras_module(generation)
    keras.utils.set_random_seed(0)
    with scope(strategy):
        return keras.Sequential([
            keras.Input((4,)), keras.layers.Dense(16, activation="relu"), keras.layers.BatchNormalization(),
            keras.layers.Dense(3),
        ])  # fmt: skip


def batches(epoch, skip):
    """Rows in an order that depends on the number of the pass."""
    x = tf.constant(np.random.default_rng(0).standard_normal((ROWS, 4)).astype(np.float32))
    y = tf.cast(tf.reduce_sum(x, 1) > 0, tf.int32)

    def ordered(number):
        order = tf.random.experimental.stateless_shuffle(tf.range(ROWS), tf.stack([number, 7]))
        return tf.data.Dataset.from_tensor_slices((tf.gather(x, order), tf.gather(y, order)))

    numbers = tf.data.Dataset.from_tensors(0).map(lambda _: tf.cast(tf.convert_to_tensor(epoch), tf.int64))
    found = numbers.flat_map(ordered).batch(CONFIG.batch_size).skip(skip)
    return found.apply(tf.data.experimental.assert_cardinality(-(-ROWS // CONFIG.batch_size) - skip))


def train(generation, folder, kill_at=0, technique="", replicas=1):
    strategy = make_strategy(replicas)
    model = build(generation, strategy)
    keras = keras_api.keras_module(generation)
    state = []
    if technique == "quantize":
        prepared = quantize.prepare(model, tfopt.QuantizeConfig(activations="static"))
        model, state = prepared.model, prepared.state
        assert state  # ranges and steps, which are no weights
    checkpoints = Checkpoints(folder, every=4, extra=state) if folder else None
    callbacks = [Killer(kill_at)] if kill_at else []
    if technique == "prune":
        callbacks.insert(
            0, tfopt.callbacks.MagnitudePruning(tfopt.schedules.PolynomialDecay(0.0, 0.6, 0, 60, frequency=5))
        )

    def compile_with(optimizer, **settings):
        model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), **settings)

    kept = {"ema": 0.9, "keep_best": True, "schedule": "plateau"} if technique == "kept" else {}
    fit(model, batches, config=dataclasses.replace(CONFIG, **kept), steps=STEPS, callbacks=callbacks,
        strategy=strategy, checkpoints=checkpoints, compile_with=compile_with,
        validation=batches(9, 20) if kept else None)  # fmt: skip
    variables = [*keras_api.state_of(model), *state]
    return [keras_api.to_numpy(v) for v in variables] + [keras_api.learning_step(model)]


class Killer(keras_api.Callback):
    """Ends the process at a step, as a power cut would."""

    def __init__(self, step):
        self._step = step

    def on_train_batch_end(self, batch, logs=None):
        if keras_api.learning_step(self.model) == self._step:
            time.sleep(0.3)  # for what is being written, or half of it
            os.kill(os.getpid(), signal.SIGKILL)


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("kill_at", "technique"), [(30, ""), (53, "prune"), (41, "quantize"), (62, "quantize"), (54, "kept")]
)
def test_a_killed_training_goes_on_bit_for_bit(generation, tmp_path, kill_at, technique):
    """In the middle of the second pass, and in the third; with masks that a schedule changes, observed ranges, averages."""
    with pytest.raises(ChildFailedError, match="signal 9"):
        run_in_child(train, generation, str(tmp_path / "c"), kill_at, technique, preload=WARM)
    kept = sorted(p.name for p in (tmp_path / "c").glob("step-*"))
    assert len(kept) == 2 and int(kept[-1][5:]) in range(kill_at - 8, kill_at + 1)
    went_on = train(generation, tmp_path / "c", technique=technique)
    assert went_on[-1] == STEPS and same(went_on, train(generation, None, technique=technique))


def test_two_replicas_go_on_as_well(tmp_path):
    """Each has statistics of its own, of which the checkpoint has the mean, so the last bits may differ."""
    with pytest.raises(KeyboardInterrupt):
        interrupted("tf_keras", tmp_path / "c", 2)
    went_on, whole = train("tf_keras", tmp_path / "c", replicas=2), train("tf_keras", None, replicas=2)
    assert went_on[-1] == STEPS
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(went_on, whole, strict=True))


def interrupted(generation, folder, replicas=1):
    class Interrupt(keras_api.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if keras_api.learning_step(self.model) == 40:
                raise KeyboardInterrupt

    strategy = make_strategy(replicas)
    model = build(generation, strategy)
    keras = keras_api.keras_module(generation)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    fit(model, batches, config=CONFIG, steps=STEPS, callbacks=[Interrupt()], strategy=strategy,
        checkpoints=Checkpoints(folder, every=4),
        compile_with=lambda optimizer, **settings: model.compile(optimizer, loss, **settings))  # fmt: skip


def test_damaged_and_foreign_checkpoints_are_left_alone(tmp_path, caplog):
    with pytest.raises(KeyboardInterrupt):
        interrupted("keras", tmp_path / "c")
    older, newest = sorted((tmp_path / "c").glob("step-*"))
    content = bytearray((newest / "model-00001.safetensors").read_bytes())
    content[-9] ^= 1
    (newest / "model-00001.safetensors").write_bytes(content)
    model, other = build_compiled(), build_compiled()
    other.layers[0].kernel.assign_add(other.layers[0].kernel)
    with caplog.at_level(logging.WARNING):
        assert Checkpoints(tmp_path / "c").restore(other).step == 0
        assert "began with other weights" in caplog.text
        found = Checkpoints(tmp_path / "c").restore(model)
    assert found.step == int(older.name[5:]) == keras_api.learning_step(model) and "checksum of" in caplog.text
    shutil.rmtree(older)
    assert Checkpoints(tmp_path / "c").restore(build_compiled()).step == 0
    for wrong in ({"every": 0}, {"keep": 0}):
        with pytest.raises(InputError, match="must be 1 or more"):
            Checkpoints(tmp_path, **wrong)


def build_compiled():
    model = build("keras")
    schedules = keras_api.keras_module("keras").optimizers.schedules
    model.compile(keras_api.keras_module("keras").optimizers.AdamW(schedules.CosineDecay(0.1, 9)), "mse")
    return model


def test_a_disk_that_is_full_costs_the_checkpoint_and_not_the_training(tmp_path, caplog, monkeypatch):
    import tfopt.train.checkpoints as module

    def full(*arguments, **settings):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save", full)
    assert train("tf_keras", tmp_path / "c")[-1] == STEPS
    assert "the checkpoint of step" in caplog.text and "No space left" in caplog.text


def test_checkpoints_of_another_training_do_not_outlive_new_ones(tmp_path):
    for name in ("step-000000850", "step-000000900"):
        tfopt.store.save({"a": np.ones(3)}, tmp_path / "c" / name)
        (tmp_path / "c" / name / "position.json").write_text('{"epoch": 9, "batch": 0, "step": 900, "origin": "x"}')
    (tmp_path / "c" / "notes.txt").write_text("mine")
    train("keras", tmp_path / "c")
    kept = sorted(p.name for p in (tmp_path / "c").glob("step-*"))
    assert len(kept) == 2 and all(int(name[5:]) <= STEPS for name in kept)
    Checkpoints(tmp_path / "c").clear()
    assert [p.name for p in (tmp_path / "c").iterdir()] == ["notes.txt"]
