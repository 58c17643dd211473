"""A decoder that is in the repository, against what transformers and llama.cpp compute with it.

Made by `python -m benchmarks.golden`, so that a clone alone proves as much as one beside the shared data.
"""

import numpy as np
import pytest

import tfopt
from tfopt._keras import keras_api
from tfopt.structure.features import features_of
from tfopt.structure.nodes import functional, struct_of

from .conftest import REPOSITORY

FOLDER = REPOSITORY / "tests" / "data" / "tiny_decoder"
PROMPTS = (0, 1)


@pytest.fixture(scope="module")
def golden():
    return np.load(FOLDER / "golden.npz")


@pytest.fixture(scope="module")
def decoder_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("golden") / "m.tflite"
    tfopt.export(tfopt.models.from_pretrained(FOLDER), path, lengths=[64, 96])
    return path


def inputs_of(ids):
    return {"input_ids": ids[None], "attention_mask": np.ones_like(ids[None])}


@pytest.mark.parametrize("number", PROMPTS)
def test_logits_and_hidden_states_are_those_of_the_references(golden, generation, number):
    model, ids = tfopt.models.from_pretrained(FOLDER, generation), golden[f"ids_{number}"]
    logits = np.asarray(model(inputs_of(ids)))[0]
    for reference in ("logits", "llama_cpp_logits"):
        np.testing.assert_allclose(logits, golden[f"{reference}_{number}"], atol=5e-5)
    keras = keras_api.keras_module(generation)
    first = features_of(model).hidden[0]
    inner = keras.Model(struct_of(functional(model), "inputs"), first)
    np.testing.assert_allclose(np.asarray(inner(inputs_of(ids)))[0], golden[f"hidden_{number}"][1], atol=5e-5)


@pytest.mark.parametrize("runtime", ["eager", "xla", "tflite"])
def test_greedy_text_is_that_of_the_references(golden, decoder_file, runtime):
    source = decoder_file if runtime == "tflite" else FOLDER
    generator = tfopt.Generator.load(source, runtime=runtime)
    for number in PROMPTS:
        prompt = str(golden["prompts"][number])
        config = tfopt.GenerateConfig(max_tokens=32, stop_tokens=())
        (answer,) = generator.generate(prompt, config)
        assert list(answer.tokens) == golden[f"greedy_{number}"].tolist()
        assert list(answer.tokens) == golden[f"llama_cpp_greedy_{number}"].tolist()
        assert generator.tokenizer.encode_ids(prompt) == golden[f"ids_{number}"].tolist()


@pytest.mark.parametrize("number", PROMPTS)
def test_files_compute_what_the_references_do(golden, decoder_file, tmp_path, number):
    ids = golden[f"ids_{number}"]
    found = tfopt.Predictor.load(decoder_file).predict(inputs_of(ids))["logits"][0]
    np.testing.assert_allclose(found, golden[f"llama_cpp_logits_{number}"], atol=1e-4)
    tfopt.export(tfopt.models.from_pretrained(FOLDER), tmp_path / "m", in_place=True)
    found = tfopt.Predictor.load(tmp_path / "m").predict(inputs_of(ids))["logits"][0]
    np.testing.assert_allclose(found, golden[f"logits_{number}"], atol=1e-4)


def test_the_trained_weights_come_back_as_they_were_written(tmp_path):
    model = tfopt.models.from_pretrained(FOLDER)
    tfopt.models.save_pretrained(model, tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (FOLDER / "model.safetensors").read_bytes()
