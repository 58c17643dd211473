"""Turned decoders compute what they did, on every runtime, and lose less when they are rounded."""

import dataclasses
import importlib
import importlib.util
import json

import numpy as np
import pytest

import tfopt
from tfopt._keras import keras_api
from tfopt._keras.keras_io import inputs_of
from tfopt.compress import lora
from tfopt.decoding.generate import GenerateConfig
from tfopt.decoding.weights import config_of, weights_of
from tfopt.engine.generator import Generator
from tfopt.errors import InputError, WorkFailedError
from tfopt.export.integers import config_named, make_record
from tfopt.export.said import IDS, said_by
from tfopt.numerics.agreement import divergence
from tfopt.numerics.hadamard import hadamard, mixing
from tfopt.quantization.config import NAMED
from tfopt.quantization.weights import on_grids
from tfopt.runtime.eager_decoder import EagerDecoder
from tfopt.tflite.file import read_tflite

from .decoders import FAMILIES, logits_of, make, tokens
from .test_chat import folder  # noqa: F401 - a fixture

export_module, rotated_module = map(importlib.import_module, ("tfopt.export.export", "tfopt.models.rotated"))


@pytest.mark.parametrize("size", [1, 2, 16, 12, 36, 57])
def test_matrices_are_undone_by_their_transpose(size):
    np.testing.assert_allclose(mixing(size).T @ mixing(size), np.eye(size), atol=1e-12)


def test_no_number_of_a_hadamard_matrix_stands_out():
    assert np.array_equal(np.abs(hadamard(64)), np.full((64, 64), 1 / 8))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_turned_decoder_computes_the_same(family, generation):
    model, ids = make(family, generation), tokens(2)
    expected, turned = logits_of(model, ids), tfopt.models.rotated(model)
    np.testing.assert_allclose(logits_of(turned, ids), expected, atol=2e-4 * np.abs(expected).max())
    np.testing.assert_allclose(over_a_cache(turned, ids), expected, atol=2e-4 * np.abs(expected).max())
    before, after = weights_of(model), weights_of(turned)
    assert not np.allclose(before["layer_0_down/kernel"], after["layer_0_down/kernel"])
    stream = FAMILIES[family].norm == "rms" and not FAMILIES[family].post_norms
    assert np.allclose(after["layer_0_mlp_norm/gamma"], 1.0) == stream


# Widths with an odd factor, and such as are a product of two matrices.
WIDTHS = {48: {}, 384: {"intermediate_size": 96}}


@pytest.mark.parametrize("width", WIDTHS)
def test_widths_that_are_no_power_of_two(width, generation, tmp_path):
    config = dataclasses.replace(FAMILIES["qwen2"], hidden_size=width, head_dim=width // 4, **WIDTHS[width])
    model, ids = make(config, generation), tokens(2)
    expected, turned = logits_of(model, ids), tfopt.models.rotated(model)
    assert config_of(turned).turned_stream
    np.testing.assert_allclose(logits_of(turned, ids), expected, atol=2e-4 * np.abs(expected).max())
    np.testing.assert_allclose(over_a_cache(turned, ids), expected, atol=2e-4 * np.abs(expected).max())
    loaded = tfopt.models.load(tfopt.models.save(turned, tmp_path / "turned.keras"))
    np.testing.assert_array_equal(logits_of(loaded, ids), logits_of(turned, ids))


def test_a_turn_that_changes_the_model_is_refused(tmp_path, monkeypatch):
    """As one would that forgot the way back."""
    monkeypatch.setattr(rotated_module, "_turn_inner", lambda config, weights: None)
    with pytest.raises(InputError, match="computes something else"):
        tfopt.models.rotated(make("llama"))
    wrong = make("qwen2", seed=1)
    monkeypatch.setattr(export_module, "rotated", lambda model: wrong)
    with pytest.raises(WorkFailedError, match="rotation changed outputs by"):
        tfopt.export(make("qwen2"), tmp_path / "m.tflite", quantization=EIGHT, lengths=[32])
    assert not (tmp_path / "m.tflite").exists()


def over_a_cache(model, ids):
    with EagerDecoder(model, ids.shape[1]).open([0] * len(ids)) as session:
        return np.concatenate([session.extend(part, every=True) for part in (ids[:, :7], ids[:, 7:])], 1)


def test_a_turned_decoder_is_saved_and_loaded(generation, tmp_path):
    turned = tfopt.models.rotated(make("qwen2", generation))
    loaded = tfopt.models.load(tfopt.models.save(turned, tmp_path / "turned.keras"))
    assert config_of(loaded).inner_rotation == 16 and config_of(loaded).turned_stream
    np.testing.assert_array_equal(logits_of(loaded, tokens()), logits_of(turned, tokens()))


def test_outliers_go_and_four_bits_lose_less(generation):
    model = make("llama", generation)
    for weight in keras_api.weights(model):  # a channel that reaches far, as real models have them
        parts = {"_norm/gamma": 0.02, "_gate/kernel": 50, "_up/kernel": 50, "_query/kernel": 50, "_key/kernel": 50}
        for ending, factor in parts.items():
            if weight.path.endswith(ending) and "final" not in weight.path:
                value = keras_api.to_numpy(weight.variable)
                value[3] *= factor
                weight.variable.assign(value)
    ids = tokens(4)
    expected = logits_of(model, ids)

    def error(of):
        tfopt.finish(tfopt.quantize_aware(of, 4, activations="dynamic"))
        return np.abs(logits_of(of, ids) - expected).mean()

    assert error(tfopt.models.rotated(model)) < 0.8 * error(model)


def test_what_cannot_be_turned_is_said(generation):
    turned = tfopt.models.rotated(make("llama", generation))
    with pytest.raises(InputError, match="was rotated before"):
        tfopt.models.rotated(turned)
    factorized = tfopt.factorize(make("llama", generation), rank=4)
    with pytest.raises(InputError, match="factorized"):
        tfopt.models.rotated(factorized)
    with pytest.raises(InputError, match="inner_rotation must be a power of two"):
        dataclasses.replace(FAMILIES["llama"], inner_rotation=24)


EIGHT = tfopt.QuantizeConfig(rotate=True)
FEW = dataclasses.replace(NAMED["dynamic_int4"], rotate=True, rounding="gptq", weight_granularity=32, table_bits=8)


@pytest.mark.parametrize("config", [EIGHT, FEW], ids=["int8", "int4"])
def test_a_file_of_the_turned_model(config, tmp_path, generation):
    model = make("qwen2", generation)
    artifact = tfopt.export(model, tmp_path / "m.tflite", quantization=config, lengths=[32])
    bits = {layer.path: layer.bits for layer in artifact.layers}
    assert bits["layer_0_up/kernel"] == config.weight_bits and set(bits) <= set(weights_of(model))
    assert "rotation" in [check.name for check in artifact.checks]
    assert not config_of(model).turned_stream, "the model given is not changed"
    answer = Generator.load(artifact.path).generate([[1, 2, 3]], GenerateConfig(max_tokens=4))[0]
    assert len(answer.tokens) == 4


@pytest.mark.skipif(importlib.util.find_spec("litert_lm") is None, reason="litert-lm-api is not there")
def test_litert_lm_runs_the_turned_model(folder, tmp_path):  # noqa: F811
    model = tfopt.models.from_pretrained(folder, "keras")
    artifact = tfopt.export(model, tmp_path / "m.litertlm", quantization=EIGHT, lengths=[192])
    assert "rotation" in [check.name for check in artifact.checks]


def test_rounding_in_order_is_better_than_to_nearest(shared_data):
    """On real weights, and a text that they were not rounded on."""
    stories = tfopt.models.from_pretrained(shared_data / "tinystories260k")
    ids, others = said_by(stories, 128, seed=1, rows=32), said_by(stories, 128, seed=5, rows=8)
    expected = logits_of(stories, others)

    def loss(config):
        record, _ = make_record(stories, config, inputs_of(stories), {IDS: ids})
        with on_grids(stories, record.grids):
            return divergence(logits_of(stories, others), expected)

    nearest = dataclasses.replace(FEW, rotate=False, rounding="nearest")
    losses = [loss(dataclasses.replace(nearest, rounding=rounding)) for rounding in ("nearest", "gptq")]
    assert losses[1] < 0.65 * losses[0]


def test_the_command_turns_and_says_what_it_cannot(tmp_path, tfopt_main):
    path = tfopt.models.save(make("qwen2", "keras"), tmp_path / "m.keras")
    command = ["export", path, "-o", tmp_path / "m.tflite", "--length", 32, "--rotate", "--quantization"]
    code, out, _ = tfopt_main(*command, "dynamic_int8", "--json")
    assert code == 0 and "rotation" in [check["name"] for check in json.loads(out)["checks"]]
    code, _, err = tfopt_main(*command, "dynamic_int8", "--max-bytes", 9000)
    assert code == 2 and "give either --rotate or a budget" in err
    code, _, err = tfopt_main(*command, "float16")
    assert code == 2 and "--rotate" in err


def test_what_is_meant_by_names_when_channels_are_turned():
    turned, kept = make("qwen2"), make("gpt2")
    assert config_named("dynamic_int4", turned, rotate=True).smooth is None
    assert config_named("dynamic_int4", kept, rotate=True).smooth, "norms of GPT-2 stand between"
    assert config_named("dynamic_int4", turned, rotate=True).rotate


def test_trained_grids_are_not_turned(tmp_path, generation):
    model = make("llama", generation)
    tfopt.finish(tfopt.quantize_aware(model, 8))
    with pytest.raises(InputError, match="rotate before|was quantized"):
        tfopt.export(model, tmp_path / "m.tflite", quantization=EIGHT, lengths=[32])
    with pytest.raises(InputError, match="train tfopt.models.rotated"):
        tfopt.quantize_aware(make("llama", generation), 8, rotate=True)
    with pytest.raises(InputError, match="for causal language models"):
        bert = tfopt.models.bert(tfopt.models.BertConfig(64, 16, 1, 2, 32, 32), num_labels=2, generation=generation)
        tfopt.export(bert, tmp_path / "m.tflite", quantization=EIGHT)


def test_what_is_attached_is_not_lost(generation):
    """A model that computes more than its weights say would be turned into another."""
    model = make("llama", generation)
    tfopt.quantize_aware(model, 3)
    with pytest.raises(InputError, match="call finish first"):
        tfopt.models.rotated(model)
    model = make("llama", generation)
    lora.prepare(model, lora.LoraConfig(rank=2))
    for variable in model.trainable_variables:
        variable.assign(np.full(variable.shape, 0.3, np.float32))
    with pytest.raises(InputError, match="call finish first"):
        tfopt.models.rotated(model)


def test_policies_of_others_change_nothing(generation):
    model, which = make("qwen2", generation), keras_api.keras_module(generation)
    put = which.config.set_dtype_policy if generation == "keras" else which.mixed_precision.set_global_policy
    put("mixed_bfloat16")
    try:
        turned = tfopt.models.rotated(model)
    finally:
        put("float32")
    np.testing.assert_allclose(logits_of(turned, tokens()), logits_of(model, tokens()), atol=1e-3)


def test_matrices_that_turn_stay_in_float(tmp_path, generation):
    """They are as large as weights in a model of that width, and rounding what they are given would undo them."""
    config = dataclasses.replace(FAMILIES["llama"], intermediate_size=128)  # turned in blocks of 32
    artifact = tfopt.export(make(config, generation), tmp_path / "m.tflite", quantization=EIGHT, lengths=[32])
    floats = [c for c in read_tflite(artifact.path).constants if c.data.shape == (32, 32)]
    assert [c for c in floats if c.data.dtype == np.float32], "among weights of the same shape"
    assert {layer.path for layer in artifact.layers} <= set(weights_of(make(config)))


def test_what_else_takes_turned_models(tmp_path, generation):
    model = tfopt.models.rotated(make("qwen2", generation))
    ids = tokens(2)
    smaller = tfopt.shrink(model, neurons=0.3)
    assert logits_of(smaller, ids).shape == logits_of(model, ids).shape
    factorized = tfopt.factorize(tfopt.models.rotated(make("qwen2", generation)), rank=4)
    record, _ = make_record(factorized, dataclasses.replace(FEW, rotate=False), inputs_of(factorized), {IDS: ids})
    assert any("_low/kernel" in path for path in record.grids)
    prompt = [[1, 2, 3]]
    texts = [
        Generator.load(model, runtime=runtime).generate(prompt, GenerateConfig(max_tokens=6))[0].tokens
        for runtime in ("eager", "xla")
    ]
    assert texts[0] == texts[1]
    with pytest.raises(InputError, match="turned"):
        tfopt.models.save_pretrained(model, tmp_path / "folder")
