"""Cached decoding on every runtime: the same logits as recomputing, in files and in this process."""

import numpy as np
import pytest

import tfopt
from tfopt.compress import quantize
from tfopt.decoding.generate import GenerateConfig
from tfopt.engine.generator import Generator
from tfopt.errors import InputError, ModelFileError
from tfopt.numerics.agreement import MEASURES
from tfopt.quantization import NAMED, QuantizeConfig
from tfopt.quantization.calibration import quantize_weights
from tfopt.quantization.weights import on_grids
from tfopt.runtime.eager_decoder import EagerDecoder
from tfopt.runtime.second import run_second
from tfopt.runtime.tflite_decoder import TFLiteDecoder
from tfopt.runtime.xla_decoder import XlaDecoder
from tfopt.tflite.file import read_metadata, read_tflite

from .decoders import FAMILIES, logits_of, make, tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_changes_nothing(family, generation):
    model, ids = make(family, generation), tokens(2)
    full = logits_of(model, ids)
    with EagerDecoder(model).open([0, 0]) as session:
        parts = [session.extend(ids[:, :7], every=True), session.extend(ids[:, 7:9], every=True)]
        parts += [session.extend(ids[:, i : i + 1]) for i in range(9, 20)]
        assert session.length == 20 and session.cache_bytes > 0
    np.testing.assert_allclose(np.concatenate(parts, 1), full, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_at_either_end_changes_nothing(family, generation):
    model, ids = make(family, generation), tokens(1, 12)
    full = logits_of(model, ids)
    zeros, ones = np.zeros((1, 5), np.int32), np.ones_like(ids)
    left, right = np.concatenate([zeros, ids], 1), np.concatenate([ids, zeros], 1)
    np.testing.assert_allclose(logits_of(model, left, np.concatenate([zeros, ones], 1))[:, 5:], full, atol=1e-4)
    np.testing.assert_allclose(logits_of(model, right, np.concatenate([ones, zeros], 1))[:, :12], full, atol=1e-4)
    with EagerDecoder(model).open([5]) as session:
        np.testing.assert_allclose(session.extend(left, every=True)[:, 5:], full, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_runtime_gives_the_same(family, tmp_path):
    model, ids = make(family), tokens(1, 40)
    full = logits_of(model, ids)
    slots = [16, 48] if family == "mistral" else [48]  # files with several caches: once
    tfopt.export(model, tmp_path / "m.tflite", format="tflite", lengths=slots)
    for decoder in (XlaDecoder(model), TFLiteDecoder(tmp_path / "m.tflite", 1)):
        with decoder.open([0]) as session:
            parts = [session.extend(ids[:, :11], every=True)]
            parts += [session.extend(ids[:, i : i + 1]) for i in range(11, 40)]
        np.testing.assert_allclose(np.concatenate(parts, 1), full, atol=2e-4)
        with decoder.open([0]) as session:  # prompts, then back, then on
            session.extend(ids[:, :30])
            session.rewind(20)
            np.testing.assert_allclose(session.extend(ids[:, 20:40])[:, -1], full[:, -1], atol=2e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_models_train_save_and_take_every_technique(family, keras, generation, tmp_path):
    model = tfopt.models.causal_lm(FAMILIES[family], generation)
    ids = np.tile(np.arange(16, dtype=np.int32), (32, 1))
    inputs, targets = {"input_ids": ids[:, :-1], "attention_mask": np.ones_like(ids[:, :-1])}, ids[:, 1:]
    quantize.prepare(model, QuantizeConfig())
    model.compile(keras.optimizers.Adam(3e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    losses = model.fit(inputs, targets, epochs=6, batch_size=8, verbose=0).history["loss"]
    assert losses[-1] < 0.7 * losses[0]
    simulated = logits_of(model, ids[:1])
    tfopt.finish(model)
    tfopt.prune(model, 0.3)
    tfopt.models.save(model, tmp_path / "m.keras")
    again = tfopt.models.load(tmp_path / "m.keras")
    np.testing.assert_array_equal(logits_of(again, ids[:1]), logits_of(model, ids[:1]))
    assert EagerDecoder(again).config == FAMILIES[family]
    assert simulated.shape == (1, 16, 64)


def test_trained_grids_are_in_the_file_that_generates(keras, generation, tmp_path):
    model = make("llama", generation)
    quantize.prepare(model, QuantizeConfig(weight_bits=4))
    ids = tokens(8, 12)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit({"input_ids": ids[:, :-1], "attention_mask": np.ones_like(ids[:, 1:])}, ids[:, 1:], verbose=0)
    simulated = logits_of(model, ids[:1])
    tfopt.finish(model)
    artifact = tfopt.export(model, tmp_path / "m.tflite", format="tflite", quantization="trained")
    assert {layer.bits for layer in artifact.layers} == {4}
    found = tfopt.Predictor.load(artifact.path).predict(
        {"input_ids": ids[:1], "attention_mask": np.ones_like(ids[:1])}
    )["logits"]
    np.testing.assert_allclose(found, simulated, atol=0.05 * np.abs(simulated).max())


def test_small_caches_and_tied_tables(tmp_path):
    model, ids = make("qwen2"), tokens(1, 40)
    artifact = tfopt.export(model, tmp_path / "m.tflite", format="tflite", lengths=[5, 48])
    with TFLiteDecoder(artifact.path, 1).open([0]) as session:
        session.extend(ids[:, :3])
        np.testing.assert_allclose(session.extend(ids[:, 3:40])[:, -1], logits_of(model, ids)[:, -1], atol=2e-4)
    with pytest.raises(InputError, match="this session is closed"):
        session.extend(ids[:, :1])
    four_bits = NAMED["weight_only_int4"]  # as it is: the name means factors and a table of 8 bits besides
    for kind, limit in ((None, 1e-4), ("float16", 0.02), ("weight_only_int8", 0.06), (four_bits, 0.0)):
        path = tfopt.export(model, tmp_path / "k.tflite", format="tflite", quantization=kind).path
        tables = [c for c in read_tflite(path).constants if sorted(c.shape) == [32, 64]]
        assert len(tables) == 1, "the output is tied to the table"
        expected = logits_of(model, ids)
        if kind is four_bits:  # 8 bits are rounded with the norms folded into them
            with on_grids(model, quantize_weights(model, four_bits)[0].grids):
                expected, limit = logits_of(model, ids), 2e-3
        found = tfopt.Predictor.load(path).predict({"input_ids": ids, "attention_mask": np.ones_like(ids)})[
            "logits"
        ]
        np.testing.assert_allclose(found, expected, atol=limit * np.abs(expected).max())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.filterwarnings("ignore:(?s).*tf.lite.Interpreter is deprecated")
@pytest.mark.parametrize("quantization", ["dynamic_int8", "dynamic_int4_block32"])
def test_narrow_files_in_a_second_runtime(tmp_path, family, quantization):
    """GPT-2's attention scales are folded into its grids, whose scales were then no longer those of the file."""
    artifact = tfopt.export(
        make(family), tmp_path / "m.tflite", lengths=[32], quantization=quantization, accept=MEASURES
    )
    assert any(check.name.startswith("correlation in TensorFlow Lite") for check in artifact.checks)
    ids = tokens(1)
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    found, _ = run_second(artifact.path, inputs)
    expected = tfopt.Predictor.load(artifact.path).predict(inputs)["logits"]
    assert np.corrcoef(found["logits"].ravel(), expected.ravel())[0, 1] > 0.999


def test_files_that_generate(tmp_path):
    model = make("llama")
    artifact = tfopt.export(
        model, tmp_path / "m.tflite", format="tflite", quantization="dynamic_int8", lengths=[16, 48]
    )
    assert artifact.lengths == (16, 48) and "tfopt_causal_lm.json" in read_metadata(artifact.path)
    decoder = TFLiteDecoder(artifact.path, 1, tmp_path / "cache")
    keys = {s.key for s in decoder.signatures}
    assert {"decode", "decode_16", "prefill_16", "prefill_16_16", "verify_8", "verify_8_16"} <= keys
    stored = [c for c in read_tflite(artifact.path).constants if c.is_matrix and c.data.size > 1000]
    assert stored and all(c.dtype == "int8" for c in stored)
    assert Generator.load(artifact.path).decoder.rows == 1
    with pytest.raises(InputError, match="takes one text at a time"):
        decoder.open([0, 0])
    with pytest.raises(InputError, match=r"lengths of a cache must be in \[1, 48\]"):
        tfopt.export(model, tmp_path / "m.tflite", format="tflite", lengths=[64])
    with pytest.raises(InputError, match="no static kind"):
        tfopt.export(model, tmp_path / "m.tflite", format="tflite", quantization="int8",
                     representative={n: tokens(8, 12) for n in ("input_ids", "attention_mask")})  # fmt: skip
    whole = artifact.path.read_bytes()
    for cut in (100, len(whole) // 2, len(whole) - 5000):
        (tmp_path / "cut.tflite").write_bytes(whole[:cut])
        with pytest.raises(ModelFileError):
            TFLiteDecoder(tmp_path / "cut.tflite")
    (kept,) = (tmp_path / "cache").iterdir()
    (tmp_path / "m.tflite").write_bytes(whole)  # the same file anew: what was kept for the old one is not used
    TFLiteDecoder(artifact.path, 1, tmp_path / "cache")
    assert kept.exists() and len(list((tmp_path / "cache").iterdir())) == 2
    again = TFLiteDecoder(artifact.path, 1, tmp_path / "cache")
    for decoder_ in (decoder, again):
        with decoder_.open([0]) as session:
            found = session.extend(tokens(1, 20), every=True)
        np.testing.assert_allclose(found, logits_of(model, tokens(1, 20)), atol=0.1 * np.abs(found).max())


def test_narrow_caches_and_odd_ones(tmp_path):
    """Nine slots do not begin where LiteRT wants them to unless they are put there."""
    model, ids = make("qwen2"), tokens(1, 40)
    full, sizes = logits_of(model, ids), {}
    for cache, limit in (("float32", 1e-4), ("int8", 0.05)):
        path = tfopt.export(model, tmp_path / f"{cache}.tflite", format="tflite", lengths=[9, 48], cache=cache).path
        with TFLiteDecoder(path, 1).open([0]) as session:
            parts = [session.extend(ids[:, :5], every=True)] + [
                session.extend(ids[:, i : i + 1]) for i in range(5, 40)
            ]
            sizes[cache] = session.cache_bytes
        np.testing.assert_allclose(np.concatenate(parts, 1), full, atol=limit * np.abs(full).max())
    assert sizes["int8"] == sizes["float32"] * (8 + 4) / 32  # eight values and a scale
    with pytest.raises(InputError, match="cache='int8' is for a TFLite file that generates"):
        tfopt.export(model, tmp_path / "x", cache="int8")


def test_predictors_stream_tokens(tmp_path):
    model = make("llama")
    tfopt.models.save(model, tmp_path / "m.keras")
    tfopt.export(model, tmp_path / "m.tflite", format="tflite")
    config = GenerateConfig(max_tokens=9, stop_tokens=())
    first, second = (
        list(tfopt.Predictor.load(tmp_path / name).stream([1, 2, 3], config)) for name in ("m.keras", "m.tflite")
    )
    assert first == second and len(first) == 9


def test_sources_that_do_not_generate(make_bert, tmp_path):
    tfopt.models.save(make_bert(), tmp_path / "m.keras")
    with pytest.raises(InputError, match="does not generate; export a causal language model"):
        tfopt.Predictor.load(tmp_path / "m.keras").stream([1])
    with pytest.raises(InputError, match="is no causal language model of tfopt"):
        Generator.load(tmp_path / "m.keras")
    with pytest.raises(InputError, match="runtime must be one of eager, xla, tflite, got 'tpu'"):
        Generator.load(tmp_path / "m.keras", runtime="tpu")
    (tmp_path / "w.bin").write_bytes(b"\x80\x02rest")
    with pytest.raises(ModelFileError, match="is a pickle, which runs code"):
        Generator.load(tmp_path / "w.bin")
    (tmp_path / "v.bin").write_bytes(b"\1\0\0\0" * 20)
    with pytest.raises(ModelFileError, match="header"):
        Generator.load(tmp_path / "v.bin")
