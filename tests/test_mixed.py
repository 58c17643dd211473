"""Training under mixed policies, and everything after it: compression, files in float32."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

import tfopt
from tests.conftest import TINY, without_exports
from tests.test_contract import EACH
from tfopt._keras import keras_api
from tfopt._keras.loading import load_model
from tfopt._keras.precision import computes_narrow, default_policy, float32_copy
from tfopt.compress.finish import finish_all
from tfopt.compress.techniques import TECHNIQUES
from tfopt.errors import WorkFailedError
from tfopt.models import bert
from tfopt.run.pipeline import run
from tfopt.train import TrainConfig, fit
from tfopt.train.loss_scale import LossScale
from tfopt.train.strategy import scope

POLICIES = ("mixed_bfloat16", "mixed_float16")
CONFIG = TrainConfig(epochs=4, batch_size=8, learning_rate=3e-3)


def records():
    rng = np.random.default_rng(0)
    ids = rng.integers(3, 300, (64, 12)).astype(np.int32)
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    return inputs, (ids[:, 0] % 3).astype(np.int64)


def made(generation, policy, strategy=None):
    keras = keras_api.keras_module(generation)
    keras.utils.set_random_seed(1)
    with default_policy(keras, policy), scope(strategy):
        return bert(TINY, 3, generation=generation)


def trained(model, config=CONFIG, *, prepared=None, strategy=None, data=None):
    keras = keras_api.keras_module(keras_api.generation_of(model))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    data = tf.data.Dataset.from_tensor_slices(data or records()).batch(8)
    lessons = prepared.lessons if prepared else None
    data = lessons.teach(data) if lessons else data

    def compile_with(optimizer, jit_compile):
        lessons.compile(optimizer) if lessons else model.compile(optimizer, loss)

    return fit(
        model, lambda number, skip: data.skip(skip), config=config, steps=32, strategy=strategy,
        callbacks=prepared.callbacks if prepared else None, compile_with=compile_with,
    )  # fmt: skip


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("case", EACH)
def test_techniques_after_and_while_training(case, policy, generation, tmp_path):
    name, config, holds = EACH[case]
    technique = next(t for t in TECHNIQUES if t.name == name).load()
    model = made(generation, policy)
    history = trained(model)
    assert history["loss"][-1] < 0.8 * history["loss"][0]
    before = {w.path: keras_api.to_numpy(w.variable).copy() for w in keras_api.weights(model)}
    if name == "distill":
        config = dataclasses.replace(config, teacher=model)
        model = made(generation, policy)
    prepared = technique.prepare(model, config)
    history = trained(prepared.model, prepared=prepared)
    assert np.isfinite(history["loss"]).all()
    finished = finish_all(prepared.model)
    assert computes_narrow(finished) == (name != "quantize")
    keras_api.save_model(finished, tmp_path / "m.keras")
    reloaded = load_model(tmp_path / "m.keras")
    kernels = {w.path: keras_api.to_numpy(w.variable) for w in keras_api.weights(reloaded) if w.name == "kernel"}
    assert kernels and all(holds(before.get(path, value).T, value.T) for path, value in kernels.items())
    inputs, _ = records()
    truth = np.asarray(float32_copy(reloaded)(inputs, training=False))
    np.testing.assert_allclose(np.asarray(reloaded(inputs, training=False)), truth, atol=0.1)
    for target in ("m.tflite", "saved"):
        artifact = tfopt.export(reloaded, tmp_path / target, lengths=[12])
        found = tfopt.Predictor.load(artifact.path).predict(inputs)["logits"]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, truth, atol=1e-4)


def test_gradients_of_float16_neither_vanish_nor_overflow(generation, strategy):
    """A loss that is a millionth of what it was trains as well; without a scale its gradients are 0 in float16."""
    keras = keras_api.keras_module(generation)

    def small(policy):
        keras.utils.set_random_seed(0)
        with default_policy(keras, policy), scope(strategy):
            layers = keras.layers
            return keras.Sequential([layers.Input((4,)), layers.Dense(8), layers.Dense(1, dtype="float32")])

    x = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    y = x[:, :1] * 1.0
    found = {}
    for policy in ("float32", "mixed_float16"):
        model = small(policy)
        with scope(strategy):
            data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
            fit(
                model, lambda number, skip, data=data: data, strategy=strategy, steps=32,
                config=dataclasses.replace(CONFIG, optimizer="sgd", learning_rate=1e5, weight_decay=0.0, clip_norm=0),
                compile_with=lambda o, model=model, **_: model.compile(
                    o, lambda t, p: 1e-7 * tf.reduce_mean(tf.square(tf.cast(p, tf.float32) - t), -1)
                ),
            )  # fmt: skip
        found[policy] = [keras_api.to_numpy(w.variable) for w in keras_api.weights(model)]
    start = [keras_api.to_numpy(w.variable) for w in keras_api.weights(small("float32"))]
    for one, other, first in zip(found["float32"], found["mixed_float16"], start, strict=True):
        np.testing.assert_allclose(one, other, atol=0.02)
        assert np.abs(one - first).max() > 0.02


def test_a_scale_falls_where_gradients_overflow_and_grows_again():
    scale = LossScale()
    assert not scale.passed(False) and float(scale.value) == 2.0**14
    for _ in range(1999):
        assert scale.passed(True)
    assert float(scale.value) == 2.0**14 and scale.passed(True) and float(scale.value) == 2.0**15
    while float(scale.value) > 1:
        assert not scale.passed(False)
    assert scale.passed(False), "no scale is at fault"


def test_nan_is_found_under_a_loss_scale(generation):
    keras = keras_api.keras_module(generation)
    with default_policy(keras, "mixed_float16"):
        model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(2)])
    x = np.ones((24, 4), np.float32)
    x[9, 1] = np.nan
    data = tf.data.Dataset.from_tensor_slices((x, np.zeros((24, 2), np.float32))).batch(8)
    with pytest.raises(
        WorkFailedError, match="the loss was nan in batch 2 of epoch 1; not finite are the gradients"
    ):
        fit(
            model, lambda number, skip: data, config=dataclasses.replace(CONFIG, epochs=1), steps=3,
            compile_with=lambda optimizer, **_: model.compile(optimizer, "mse"),
        )  # fmt: skip


@pytest.mark.parametrize("policy", POLICIES)
def test_a_recipe_in_mixed_precision(policy, tiny_recipe, generation, tmp_path):
    text = tiny_recipe(f'precision = "{policy}"\ngeneration = "{generation}"').read_text()
    path = tmp_path / "mixed.toml"
    path.write_text(without_exports(text, '[[exports]]\nformat = "tflite"\nquantization = "dynamic_int8"\n'))
    report = run(path, tmp_path / "run", log=lambda line: None)
    assert computes_narrow(load_model(tmp_path / "run/baseline/model.keras"))
    by_name = {m.name: m for m in report.artifacts}
    assert by_name["half_tflite_dynamic_int8"].quality["accuracy"] > 0.9
    assert not (tmp_path / "run/checkpoints").exists()
