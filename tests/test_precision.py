"""Models of mixed and half precision: what is exported, trained and looked into is float32."""

import contextlib

import numpy as np
import pytest

import tfopt
from tests.conftest import TINY
from tfopt._keras import precision
from tfopt._keras.precision import computes_narrow, float32_copy, stores_narrow
from tfopt.errors import InputError

POLICIES = ("mixed_float16", "mixed_bfloat16", "float16", "bfloat16")


@contextlib.contextmanager
def policy(keras, name):
    with precision.default_policy(keras):
        put = (
            keras.config.set_dtype_policy if keras.__name__ == "keras" else keras.mixed_precision.set_global_policy
        )
        put(name)
        yield


def convolution(keras):
    layers = keras.layers
    inputs = layers.Input((12, 12, 3), name="image")
    x = layers.BatchNormalization()(layers.Conv2D(8, 3, activation="relu")(inputs))
    return keras.Model(inputs, layers.Dense(4, name="y")(layers.GlobalAveragePooling2D()(x)))


def transformer(keras):
    layers = keras.layers
    inputs = layers.Input((10,), dtype="int32", name="ids")
    x = layers.Embedding(50, 16)(inputs)
    x = layers.LayerNormalization()(layers.Add()([x, layers.MultiHeadAttention(2, 8)(x, x)]))
    return keras.Model(inputs, layers.Dense(4, name="y")(layers.GlobalAveragePooling1D()(x)))


def built(keras, make, name):
    with policy(keras, name):
        keras.utils.set_random_seed(0)
        model = make(keras)
    rng = np.random.default_rng(0)
    x = rng.integers(0, 50, (16, 10)) if make is transformer else rng.standard_normal((16, 12, 12, 3))
    return model, x.astype(np.int32 if make is transformer else np.float32)


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("make", [convolution, transformer])
def test_models_in_16_bits_are_exported_from_float32(keras, tmp_path, make, name):
    model, x = built(keras, make, name)
    before = np.asarray(model(x))
    truth = np.asarray(float32_copy(model)(x))
    input_name = model.inputs[0].name.partition(":")[0]
    for target, settings, tolerance in (
        ("m.tflite", {}, 1e-4),
        ("m", {"jit_compile": True}, 1e-4),
        ("q.tflite", {"quantization": "int8", "representative": {input_name: x}}, 0.35),
    ):
        artifact = tfopt.export(model, tmp_path / target, **settings)
        found = tfopt.Predictor.load(artifact.path).predict({input_name: x})["y"]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, truth, atol=tolerance * np.abs(truth).max())
    np.testing.assert_array_equal(np.asarray(model(x)), before)
    assert computes_narrow(model)


@pytest.mark.parametrize("name", POLICIES)
def test_models_in_16_bits_are_looked_into(keras, name):
    model, _ = built(keras, convolution, name)
    found = tfopt.inspect(model)
    assert found.name in repr(found) and len(repr(found)) < 200 and "<table" in found._repr_html_()
    assert found.parameters == model.count_params() and found.multiply_adds
    assert computes_narrow(model)


@pytest.mark.parametrize("name", POLICIES[:2])
@pytest.mark.parametrize("make", [convolution, transformer])
def test_quantization_is_trained_in_float32(keras, tmp_path, make, name, caplog):
    model, x = built(keras, make, name)
    aware = tfopt.quantize_aware(model)
    assert aware is model and not computes_narrow(model) and "in float32 from here on" in caplog.text
    aware.compile("adam", "mse")
    aware.fit(x, np.zeros((16, 4), np.float32), verbose=0)
    artifact = tfopt.export(tfopt.finish(aware), tmp_path / "m.tflite", quantization="trained")
    assert artifact.quantization == "trained"


def test_weights_in_16_bits_are_not_trained_for_integers(keras):
    model, _ = built(keras, convolution, "bfloat16")
    with pytest.raises(
        InputError, match="stores weights in 16 bits, .*: build it under the policy 'mixed_float16'"
    ):
        tfopt.quantize_aware(model)
    assert stores_narrow(model)


@pytest.mark.parametrize("name", POLICIES[:2])
def test_builders_work_under_a_policy(keras, generation, tmp_path, name):
    with policy(keras, name):
        keras.utils.set_random_seed(0)
        made = {
            "classes": tfopt.models.bert(TINY, 3, generation=generation),
            "span": tfopt.models.bert(TINY, head="span", generation=generation),
            "generates": tfopt.models.causal_lm(
                tfopt.models.CausalLMConfig(
                    50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
                    intermediate_size=32, max_position_embeddings=32,
                ),
                generation=generation,
            ),
        }  # fmt: skip
    rng = np.random.default_rng(0)
    given = {
        "input_ids": rng.integers(0, 50, (4, 8)).astype(np.int32), "attention_mask": np.ones((4, 8), np.int32)
    }  # fmt: skip
    for kind, model in made.items():
        assert computes_narrow(model) and not stores_narrow(model)
        typed = {**given, "token_type_ids": np.zeros((4, 8), np.int32)} if kind == "span" else given
        found = model(typed)
        truth = float32_copy(model)(typed)
        for one, other in zip(
            found.values() if isinstance(found, dict) else [found],
            truth.values() if isinstance(truth, dict) else [truth],
            strict=True,
        ):
            one, other = np.asarray(one), np.asarray(other)
            assert one.dtype == np.float32 or kind == "span"
            np.testing.assert_allclose(one.astype(np.float32), other, rtol=0.05, atol=0.02)
        artifact = tfopt.export(model, tmp_path / f"{kind}.tflite", lengths=[16])
        assert artifact.max_abs_error < 1e-4
    made["classes"].compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = made["classes"].fit(given, np.array([0, 1, 2, 0]), epochs=2, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
