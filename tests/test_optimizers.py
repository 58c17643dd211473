"""Optimizers and learning rates by name: what Keras would do by itself, warm-up and fall, and nothing left behind."""

import dataclasses
import typing

import numpy as np
import pytest
import tensorflow as tf

from tfopt._keras import keras_api
from tfopt.errors import InputError
from tfopt.schedules import OptimizerName, Rate, RateSchedule
from tfopt.train.fit import TrainConfig, fit
from tfopt.train.optimizers import make_optimizer
from tfopt.train.strategy import scope

STEPS = 12
KERAS_3 = ("lamb", "muon")


def model_and_data(generation, seed=0):
    keras = keras_api.keras_module(generation)
    keras.utils.set_random_seed(seed)
    model = keras.Sequential([keras.layers.Input((6,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(3)])
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4 * STEPS, 6)).astype(np.float32), rng.integers(0, 3, 4 * STEPS)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    return model, data


def trained(generation, config, rates=None, *, given=None, strategy=None):
    model, data = given or model_and_data(generation)
    keras = keras_api.keras_module(generation)

    class Note(keras_api.Callback):
        def on_train_batch_end(self, batch, logs=None):
            rates.append(float(keras_api.to_numpy(self.model.optimizer.learning_rate)))

    def compile_with(optimizer, **settings):
        model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))

    history = fit(
        model, lambda number, skip: data.skip(skip), config=config, steps=STEPS, compile_with=compile_with,
        callbacks=[] if rates is None else [Note()], strategy=strategy,
    )  # fmt: skip
    return model, history


CONFIG = TrainConfig(epochs=1, batch_size=4, learning_rate=0.01, warmup=0.25, weight_decay=0.1, clip_norm=0.5)


@pytest.mark.parametrize("name", typing.get_args(OptimizerName))
def test_every_optimizer_does_what_keras_does_by_itself(name, generation):
    config = dataclasses.replace(CONFIG, optimizer=name, schedule="constant", warmup=0.0)
    if name in KERAS_3 and generation == "tf_keras":
        with pytest.raises(InputError, match=f"optimizer '{name}' is not in tf_keras"):
            trained(generation, config)
        return
    found, _ = trained(generation, config)
    plain, data = model_and_data(generation)
    keras = keras_api.keras_module(generation)
    settings = {"sgd": {"momentum": 0.9, "nesterov": True}, "adafactor": {"relative_step": False},
                "muon": {"adam_weight_decay": 0.1}}.get(name, {})  # fmt: skip
    kind = {"adamw": "AdamW", "sgd": "SGD"}.get(name, name.capitalize())
    optimizer = getattr(keras.optimizers, kind)(0.01, weight_decay=0.1, global_clipnorm=0.5, **settings)
    optimizer.exclude_from_weight_decay(var_list=[w for w in plain.trainable_variables if len(w.shape) < 2])
    plain.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    plain.fit(data, epochs=1, verbose=0, shuffle=False)
    for ours, theirs in zip(found.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("name", typing.get_args(OptimizerName))
def test_biases_are_not_decayed(name, generation):
    model, _ = model_and_data(generation)
    if name in KERAS_3 and generation == "tf_keras":
        with pytest.raises(InputError, match="make the model with Keras 3"):
            make_optimizer(model, name, 0.1, weight_decay=0.5)
        return
    for variable in model.trainable_variables:
        variable.assign(np.ones(variable.shape, np.float32))
    optimizer = make_optimizer(model, name, 0.1, weight_decay=0.5)
    variables = list(model.trainable_variables)
    optimizer.build(variables)
    optimizer.apply_gradients([(tf.zeros(v.shape), v) for v in variables])
    for variable in variables:
        decayed = keras_api.to_numpy(variable).max() < 0.999
        assert decayed == (len(variable.shape) > 1), variable.name


@pytest.mark.parametrize("schedule", [s for s in typing.get_args(RateSchedule) if s != "plateau"])
def test_rates_of_steps(schedule, generation):
    seen = []
    config = dataclasses.replace(CONFIG, schedule=schedule, optimizer="sgd")
    trained(generation, config, seen)
    rate = Rate(schedule, 0.01, warmup=3, steps=STEPS)
    if schedule == "cosine":  # Keras's own, which begins its warm-up a step lower and is read one step later
        assert max(seen) == pytest.approx(0.01, rel=0.05) and seen[-1] < 0.001
    else:
        np.testing.assert_allclose(seen, [rate(step) for step in range(STEPS)], rtol=1e-5)


def test_rates_are_those_of_every_replica(generation, strategy):
    """The same weights as on one device, for the same batches; gradients are clipped once they are summed."""
    config = dataclasses.replace(CONFIG, schedule="exponential", optimizer="sgd")
    with scope(strategy):
        model, data = model_and_data(generation)
    found, _ = trained(generation, config, given=(model, data), strategy=strategy)
    alone, _ = trained(generation, config)
    for ours, theirs in zip(found.get_weights(), alone.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_schedules_begin_at_a_peak_and_fall():
    for schedule in typing.get_args(RateSchedule):
        rate = Rate(schedule, 2.0, warmup=10, steps=110)
        values = [rate(step) for step in range(111)]
        assert values[9] == values[10] == 2.0 and all(np.diff(values[:10]) > 0), schedule
        assert all(np.diff(values[10:]) <= 1e-12), schedule
    ends = {s: Rate(s, 2.0, 10, steps=110)(110) for s in typing.get_args(RateSchedule)}
    assert ends["linear"] == ends["polynomial"] == 0 and ends["cosine"] < 1e-9
    assert ends["exponential"] == pytest.approx(0.02) and ends["constant"] == ends["plateau"] == 2.0
    assert ends["inverse_sqrt"] == pytest.approx(2.0 * (10 / 110) ** 0.5)


def test_nothing_of_ours_is_in_a_saved_model(generation, tmp_path):
    model, _ = trained(generation, dataclasses.replace(CONFIG, schedule="linear", optimizer="lion"))
    model.save(tmp_path / "m.keras")
    loaded = keras_api.keras_module(generation).models.load_model(tmp_path / "m.keras")
    assert type(loaded.optimizer).__module__.partition(".")[0] in ("keras", "tf_keras")


@pytest.mark.parametrize(("wrong", "says"), [
    ({"optimizer": "adam"}, "optimizer must be one of adamw, .*got 'adam'; did you mean 'adamw'"),
    ({"schedule": "cos"}, "did you mean 'cosine'"), ({"power": 0.0}, "power must be above 0"),
])  # fmt: skip
def test_bad_settings(wrong, says):
    with pytest.raises(InputError, match=says):
        TrainConfig(**wrong)
