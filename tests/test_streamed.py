"""Files of decoders straight from a checkpoint: the same that `export` writes, and weights held one at a time."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

import tfopt
from tfopt.decoding.shapes import weight_shapes
from tfopt.decoding.weights import weights_of
from tfopt.errors import InputError, ModelFileError, VerificationError
from tfopt.export import streamed as module
from tfopt.export.streamed import reference
from tfopt.models import save_pretrained
from tfopt.models.streamed import streamed
from tfopt.tflite.file import constant_places, read_metadata, read_tflite

from . import gguf_files
from .conftest import REPOSITORY
from .decoders import FAMILIES, logits_of, make, tokens

FOLDER = REPOSITORY / "tests" / "data" / "tiny_decoder"


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_are_those_of_the_model(family):
    assert weight_shapes(FAMILIES[family]) == {
        path: value.shape for path, value in weights_of(make(family)).items()
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_read_one_at_a_time(family, tmp_path):
    model, ids = make(family), tokens(2, 12)
    save_pretrained(model, tmp_path / "m", shard_bytes=20_000)
    with streamed(tmp_path / "m") as weights:
        for path, value in weights_of(model).items():
            np.testing.assert_allclose(weights[path], value, atol=1e-6)
        np.testing.assert_allclose(reference(weights, ids), logits_of(model, ids), atol=2e-4)


@pytest.mark.parametrize("kind", ["dynamic_int8", "weight_only_int8", "dynamic_int4_block32"])
@pytest.mark.parametrize("family", ["qwen2", "gemma3_text"])
def test_a_file_holds_the_weights_rounded_to_nearest(family, kind, tmp_path):
    model, ids = make(dataclasses.replace(FAMILIES[family], intermediate_size=64, head_dim=16)), tokens(1, 20)
    save_pretrained(model, tmp_path / "m")
    accept = ["next_tokens", "divergence", "perplexity", "correlation"] if "int4" in kind else []
    path = tfopt.export_streamed(
        tmp_path / "m", tmp_path / "m.tflite", quantization=kind, lengths=[24], accept=accept
    )
    stored = [c for c in read_tflite(path.path).constants if c.bits <= 8 and c.scale is not None]
    weights = {name: w if "embed" in name else w.T for name, w in weights_of(model).items() if w.ndim == 2}
    assert len(stored) == len(weights)
    for name, value in weights.items():
        fitting = [c for c in stored if c.shape == value.shape]
        off = min(np.abs(c.values - value).max() / np.abs(value).max() for c in fitting)
        assert off < (0.005 if "int8" in kind or "embed" in name else 0.15), name
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    found, expected = tfopt.Predictor.load(path.path).predict(inputs)["logits"], logits_of(model, ids)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > (0.98 if "int8" in kind else 0.6)


def test_a_file_from_the_command_line(tmp_path, tfopt_main):
    code, out, err = tfopt_main("export", FOLDER, "-o", tmp_path / "m.tflite", "--streamed", "--length", "64")
    assert code == 0 and "every check passed" in out, err
    assert "tfopt_causal_lm.json" in read_metadata(tmp_path / "m.tflite")
    golden = np.load(FOLDER / "golden.npz")
    (answer,) = tfopt.Generator.load(tmp_path / "m.tflite").generate(
        str(golden["prompts"][0]), tfopt.GenerateConfig(max_tokens=8, stop_tokens=())
    )
    assert list(answer.tokens) == golden["greedy_0"][:8].tolist()
    tree = json.loads((FOLDER / "config.json").read_text())
    places = constant_places(tmp_path / "m.tflite")
    assert sum(end - start for start, end, bits in places if bits == 8) >= tree["vocab_size"] * tree["hidden_size"]


def test_no_weight_goes_through_the_converter(tmp_path, monkeypatch):
    seen = []
    convert = module.convert_saved_model
    monkeypatch.setattr(module, "convert_saved_model", lambda *args: seen.append(convert(*args)) or seen[-1])
    artifact = tfopt.export_streamed(FOLDER, tmp_path / "m.tflite", lengths=[32])
    largest = max(c.data.nbytes for c in read_tflite(_written(tmp_path / "skeleton.tflite", seen[0])).constants)
    assert largest < 1000 and artifact.path.stat().st_size > 80_000


def _written(path, content):
    path.write_bytes(content)
    return path


def test_a_broken_file_does_not_pass(tmp_path, monkeypatch):
    order = module._outputs_first
    monkeypatch.setattr(
        module, "_outputs_first", lambda name, value: order(name, value[::-1] if "_up/" in name else value)
    )
    with pytest.raises(VerificationError):
        tfopt.export_streamed(FOLDER, tmp_path / "m.tflite", lengths=[32])
    assert not list(tmp_path.iterdir())


def test_bad_input(tmp_path):
    out = tmp_path / "m.tflite"
    for arguments, says in (
        ({"quantization": "int8"}, "quantization must be one of dynamic_int8"),
        ({"lengths": [97]}, r"lengths of a cache must be in \[1, 96\]"),
        ({"representative": np.full((1, 4), 512)}, r"must be token ids \(texts, tokens\) in \[0, 512\)"),
        ({"quantization": "dynamic_int4_block128"}, "which blocks of 128 do not divide"),
        ({"accept": ["all"]}, "accept must be a list out of"),
    ):
        with pytest.raises(InputError, match=says):
            tfopt.export_streamed(FOLDER, out, **arguments)
    with pytest.raises(InputError, match=r"weights are streamed into a \.tflite file"):
        tfopt.export_streamed(FOLDER, tmp_path / "m.litertlm")
    with pytest.raises(InputError, match="for models that generate without an encoder"):
        tfopt.export_streamed(REPOSITORY / "tests" / "data" / "tiny_seq2seq" / "t5", out)
    shutil.copytree(FOLDER, tmp_path / "m")
    weights = (tmp_path / "m" / "model.safetensors").read_bytes()
    (tmp_path / "m" / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ModelFileError):
        tfopt.export_streamed(tmp_path / "m", out)
    assert not out.exists()


def test_a_gguf_file_as_well(tmp_path):
    model = make("qwen2")
    path = gguf_files.write(tmp_path / "m.gguf", model, FAMILIES["qwen2"])
    with streamed(path) as weights:
        for name, value in weights_of(model).items():
            np.testing.assert_allclose(weights[name], value, atol=1e-6)
