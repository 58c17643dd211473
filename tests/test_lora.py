import numpy as np
import pytest

import tfopt
from tfopt._keras import keras_api
from tfopt._keras.loading import load_model
from tfopt.compress import lora, quantize
from tfopt.errors import InputError
from tfopt.quantization.record import record_of
from tfopt.train.strategy import scope

from .structured_models import attention, convolutions, nested

CONFIG = lora.LoraConfig(rank=2, alpha=4.0)


def values(model):
    return {w.path: keras_api.to_numpy(w.variable).copy() for w in keras_api.weights(model)}


def train(model, keras, inputs, labels, strategy=None, rate=1e-2):
    with scope(strategy):
        model.compile(keras.optimizers.Adam(rate), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(inputs, labels, batch_size=8, epochs=2, verbose=0)


def test_adapters_train_alone_and_merge_without_a_trace(make_bert, keras, strategy, tokens, tmp_path):
    model = make_bert(strategy)
    before, trainable = values(model), len(model.trainable_variables)
    untouched = np.asarray(model(tokens, training=False))
    prepared, callbacks = lora.prepare(model, CONFIG)
    assert prepared is model and not callbacks
    if strategy is None:
        np.testing.assert_array_equal(np.asarray(model(tokens, training=False)), untouched)
    assert len(model.trainable_variables) == 2 * 7  # query, key, value, output, two of the neurons, logits
    train(model, keras, tokens, labels=np.arange(16) % 3, strategy=strategy)
    during = values(model)
    assert all(np.array_equal(during[path], value) for path, value in before.items())
    adapted = model.predict(tokens, verbose=0)
    finished = lora.finish(model)
    assert finished is model and len(model.trainable_variables) == trainable
    assert {w.path for w in keras_api.weights(model)} == set(before)
    np.testing.assert_allclose(finished.predict(tokens, verbose=0), adapted, atol=2e-5)
    for path, value in values(model).items():
        change = value - before[path]
        assert (np.linalg.matrix_rank(change, tol=1e-5) <= 2 and change.any()) or "kernel" not in path
    keras_api.save_model(finished, tmp_path / "model.keras")
    reloaded = load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(np.asarray(reloaded(tokens, training=False)), adapted, atol=2e-5)
    assert tfopt.export(reloaded, tmp_path / "m.tflite", format="tflite", lengths=[12]).max_abs_error < 1e-5


@pytest.mark.parametrize(("make", "shape"), [(attention, (10, 16)), (convolutions, (12, 12, 3)), (nested, (16,))])
def test_any_layer_with_a_kernel(keras, make, shape):
    keras.utils.set_random_seed(1)
    model = make(keras)
    inputs = np.random.default_rng(0).standard_normal((16, *shape)).astype(np.float32)
    before = values(model)
    skipped = lora.prepare(model, lora.LoraConfig(1)).skipped
    assert all("rank" in s.reason or "kernel" in s.reason for s in skipped)
    train(model, keras, inputs, labels=np.arange(16) % 3)
    adapted = model.predict(inputs, verbose=0)
    np.testing.assert_allclose(lora.finish(model).predict(inputs, verbose=0), adapted, atol=1e-4)
    changed = {path for path, value in values(model).items() if not np.array_equal(value, before[path])}
    kernels = {path for path in before if path.endswith("/kernel")} - {s.path for s in skipped}
    statistics = {path for path in before if "moving_" in path}
    assert kernels <= changed <= kernels | statistics


def test_a_new_head_trains_whole(make_bert, keras, tokens):
    model = make_bert()
    before = values(model)
    lora.prepare(model, lora.LoraConfig(2, include=["*_query", "*_value"], whole="logits"))
    train(model, keras, tokens, labels=np.arange(16) % 3)
    lora.finish(model)
    changed = {path for path, value in values(model).items() if not np.array_equal(value, before[path])}
    queries = {f"layer_0_attention_{name}/kernel" for name in ("query", "value")}
    assert changed == queries | {"logits/kernel", "logits/bias"}


def test_a_quantized_model_learns_and_is_rounded_again(make_bert, keras, tokens, tmp_path):
    model = make_bert()
    quantize.quantize_aware(model, weight_bits=4)
    train(model, keras, tokens, labels=np.arange(16) % 3)
    quantize.finish(model)
    rounded = values(model)
    lora.prepare(model, CONFIG)
    train(model, keras, tokens, labels=np.arange(16) % 3, rate=3e-2)
    assert all(np.array_equal(values(model)[path], value) for path, value in rounded.items())
    lora.finish(model)
    assert record_of(model) is None  # the weights have left their grid
    artifact = tfopt.export(
        model,
        tmp_path / "m.tflite",
        format="tflite",
        quantization="dynamic_int8",
        lengths=[12],
        representative=tokens,
    )
    assert artifact.agreement == 1.0
    with pytest.raises(InputError, match="being quantized"):
        lora.prepare(quantize.quantize_aware(model), CONFIG)


def test_what_would_not_learn_gets_no_adapter(keras, make_bert):
    layers = keras.layers
    inputs = layers.Input((5, 8))
    model = keras.Model(inputs, layers.Dense(3)(layers.LSTM(6)(inputs)))
    prepared = lora.prepare(model, lora.LoraConfig(1))
    assert {s.path: s.reason for s in prepared.skipped if s.path.endswith("cell/kernel")} == {
        next(s.path for s in prepared.skipped if s.path.endswith("cell/kernel")): (
            "a recurrent layer reads it behind the back of its cell"
        )
    }
    frozen = make_bert()
    frozen.trainable = False
    with pytest.raises(InputError, match="is not trainable, so its adapter would not learn"):
        lora.prepare(frozen, CONFIG)


def test_bad_input_leaves_the_model_as_it_was(make_bert, tokens):
    model = make_bert()
    trainable, expected = len(model.trainable_variables), np.asarray(model(tokens, training=False))
    with pytest.raises(InputError, match="rank must be 1 or more, got 0"):
        lora.LoraConfig(0)
    with pytest.raises(InputError, match="alpha must be above 0, got -1"):
        lora.LoraConfig(alpha=-1)
    with pytest.raises(InputError, match="rank 64 is no less than that of a matrix of 32 x 32"):
        lora.prepare(model, lora.LoraConfig(64, include="*_query"))
    with pytest.raises(InputError, match="has no adapters"):
        lora.finish(model)
    assert len(model.trainable_variables) == trainable
    lora.prepare(model, CONFIG)
    with pytest.raises(InputError, match="has adapters already"):
        lora.prepare(model, CONFIG)
    low = next(v for v in model.trainable_variables if "adapter_low" in v.name)
    low.assign(low * np.nan)
    with pytest.raises(InputError, match="became NaN"):
        lora.finish(model)
    low.assign(np.zeros(low.shape))
    np.testing.assert_array_equal(np.asarray(lora.finish(model)(tokens, training=False)), expected)
