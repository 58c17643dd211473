"""Encoder-decoders against what transformers computes with them; made by `python -m benchmarks.golden_seq2seq`."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

import tfopt
from tfopt._keras import keras_api
from tfopt.decoding.weights import seq2seq_config_of
from tfopt.engine.generator import Generator
from tfopt.engine.opening import generates
from tfopt.errors import InputError, ModelFileError
from tfopt.models import Seq2SeqConfig, from_pretrained, save_pretrained, seq2seq
from tfopt.runtime.eager_seq2seq import EagerSeq2SeqDecoder
from tfopt.runtime.second import run_second
from tfopt.runtime.tflite_seq2seq import TFLiteSeq2SeqDecoder
from tfopt.tflite.file import read_tflite

from .conftest import REPOSITORY

FOLDER = REPOSITORY / "tests" / "data" / "tiny_seq2seq"
NAMES = ("t5", "t5_gated", "marian")
LENGTHS = (24, 15, 4)  # of the sources


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(FOLDER / "golden.npz"))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Folder -> a float file of it."""
    folder = tmp_path_factory.mktemp("seq2seq")
    return {
        name: tfopt.export(from_pretrained(FOLDER / name), folder / f"{name}.tflite", lengths=[8, 24]).path
        for name in NAMES
    }


@pytest.mark.filterwarnings("ignore:(?s).*tf.lite.Interpreter is deprecated")
@pytest.mark.parametrize("name", NAMES)
def test_a_second_runtime_gives_the_same(files, golden, name):
    inputs = given(golden, name)
    found, runtime = run_second(files[name], inputs)
    assert runtime == "TensorFlow Lite"
    expected = tfopt.Predictor.load(files[name]).predict(inputs)["logits"][:1]
    np.testing.assert_allclose(found["logits"], expected, atol=1e-4 * np.abs(expected).max())


def given(golden, name):
    mine = {part: golden[f"{name}_{part}"] for part in ("input_ids", "decoder_input_ids")}
    return {**mine, "attention_mask": golden["attention_mask"]}


def texts_are_those_of_the_reference(generator, golden, name):
    prompts = [row[:n].tolist() for row, n in zip(golden[f"{name}_input_ids"], LENGTHS, strict=True)]
    answers = generator.generate(prompts, tfopt.GenerateConfig(max_tokens=16))
    for answer, expected in zip(answers, golden[f"{name}_greedy"], strict=True):
        ended = len(answer.tokens) < 16
        assert list(answer.tokens) == expected[: len(answer.tokens)].tolist()
        assert not ended or (answer.finish, expected[len(answer.tokens)]) == (
            "stop",
            generator.decoder.config.end_tokens[0],
        )


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_the_references(golden, generation, name):
    model = from_pretrained(FOLDER / name, generation)
    found = np.asarray(model(given(golden, name), training=False))
    np.testing.assert_allclose(found, golden[f"{name}_logits"], atol=2e-4)


def test_padding_at_the_left_changes_nothing(golden, generation):
    for name in ("t5", "marian"):
        model, inputs = from_pretrained(FOLDER / name, generation), given(golden, name)
        rolled = {**inputs}
        for part in ("input_ids", "attention_mask"):
            rolled[part] = np.stack([np.roll(row, 24 - n) for row, n in zip(inputs[part], LENGTHS, strict=True)])
        found = np.asarray(model(rolled, training=False))
        np.testing.assert_allclose(found, golden[f"{name}_logits"], atol=2e-4)


@pytest.mark.parametrize("both", [True, False])
def test_distances_have_the_kinds_of_the_reference(golden, both):
    far = np.arange(-300, 301)
    reach = np.abs(far) if both else np.maximum(-far, 0)
    kinds = (reach[:, None] >= Seq2SeqConfig(9).thresholds(both)).sum(1) + (16 * (far > 0) if both else 0)
    np.testing.assert_array_equal(kinds, golden[f"buckets_{both}"])


@pytest.mark.parametrize("runtime", ["eager", "xla"])
@pytest.mark.parametrize("name", NAMES)
def test_a_cache_changes_nothing(golden, name, runtime):
    generator = Generator.load(FOLDER / name, runtime=runtime)
    with generator.decoder.open([0] * 3) as session:
        session.read(golden[f"{name}_input_ids"], golden["attention_mask"])
        target = golden[f"{name}_decoder_input_ids"]
        parts = [session.score(target[:, :4]), session.score(target[:, 4:5]), session.score(target[:, 5:])]
        assert session.cache_bytes > 0
    np.testing.assert_allclose(np.concatenate(parts, 1), golden[f"{name}_logits"], atol=3e-4)
    texts_are_those_of_the_reference(generator, golden, name)  # all at once, padded at the left


@pytest.mark.parametrize("name", NAMES)
def test_files_do_what_the_references_do(golden, files, name):
    assert generates(files[name])
    found = tfopt.Predictor.load(files[name]).predict(given(golden, name))["logits"]
    np.testing.assert_allclose(found, golden[f"{name}_logits"], atol=3e-4)
    texts_are_those_of_the_reference(Generator.load(files[name]), golden, name)
    tables = [c for c in read_tflite(files[name]).constants if c.data.size == 48 * 16]
    assert len(tables) == 1, "source, target and logits share a table"


def test_a_source_is_read_once(golden, files, monkeypatch):
    decoder, ran = TFLiteSeq2SeqDecoder(files["t5"], 1), []
    session = decoder.open([0])
    run = session._run
    monkeypatch.setattr(session, "_run", lambda key, *args: ran.append(key) or run(key, *args))
    session.extend(golden["t5_input_ids"][1:2, :15])
    for token in (3, 4, 5):
        session.extend(np.array([[token]]))
    assert ran == ["read_24", *["decode_24"] * 4]
    session.close()
    with pytest.raises(InputError, match="this session is closed"):
        session.extend(np.array([[3]]))


@pytest.mark.parametrize("kind", ["dynamic_int8", "weight_only_int8", "float16"])
def test_smaller_files(golden, tmp_path, kind):
    model = from_pretrained(FOLDER / "marian", "keras")
    artifact = tfopt.export(model, tmp_path / "m.tflite", quantization=kind, lengths=[24])
    checks = {check.name for check in artifact.checks}
    assert {"next_tokens", "perplexity", "divergence", "repeats"} <= checks
    texts_are_those_of_the_reference(Generator.load(artifact.path), golden, "marian")


def test_a_broken_file_does_not_pass(tmp_path, monkeypatch):
    """A target that looks at its source's padding, and one whose distances are wrong."""
    from tfopt.errors import VerificationError
    from tfopt.export import seq2seq as module

    model = from_pretrained(FOLDER / "t5")
    with monkeypatch.context() as broken:
        broken.setattr(module, "_seen", lambda count, size: np.ones((1, size), np.float32))
        with pytest.raises(VerificationError):
            tfopt.export(model, tmp_path / "m.tflite", lengths=[32])
    with monkeypatch.context() as broken:
        broken.setattr(
            Seq2SeqConfig, "thresholds", lambda self, both: np.arange(1, 4 if both else 8, dtype=np.int32)
        )
        with pytest.raises(VerificationError):
            other = from_pretrained(FOLDER / "t5")  # built with the wrong ones too, but the weights are the same
            broken.undo()
            tfopt.export(other, tmp_path / "m.tflite", lengths=[32])
    assert not (tmp_path / "m.tflite").exists()


@pytest.mark.parametrize("part", ["_read", "_decode"])
@pytest.mark.parametrize("size", [8, 16, 32])
def test_every_length_of_a_file_is_looked_at(tmp_path, monkeypatch, size, part):
    from tfopt.errors import VerificationError
    from tfopt.export import seq2seq as module

    right = getattr(module, part)

    def wrong(config, products, length, **settings):
        if length == size:
            lookup = products.lookup
            products = products._replace(lookup=lambda ids, name: -lookup(ids, name))
        return right(config, products, length, **settings)

    monkeypatch.setattr(module, part, wrong)
    with pytest.raises(VerificationError):
        tfopt.export(from_pretrained(FOLDER / "t5"), tmp_path / "m.tflite", lengths=[8, 16, 32])


@pytest.mark.parametrize("name", NAMES)
def test_folders_come_back_as_they_were_read(generation, tmp_path, name):
    model = from_pretrained(FOLDER / name, generation)
    save_pretrained(model, tmp_path / "m", dtype="float16")
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "m", FOLDER / name))
    for key, value in ours.items():
        np.testing.assert_array_equal(value, theirs[key])
    assert ours.keys() == {key for key in theirs if "embed_positions" not in key}
    again = from_pretrained(tmp_path / "m")
    assert seq2seq_config_of(again) == seq2seq_config_of(model)


def test_a_saved_model_still_generates(golden, generation, tmp_path):
    model = from_pretrained(FOLDER / "marian", generation)
    model.save(tmp_path / "plain.keras")  # by Keras itself
    keras = keras_api.keras_module(generation)
    texts_are_those_of_the_reference(
        Generator(EagerSeq2SeqDecoder(keras.models.load_model(tmp_path / "plain.keras"))), golden, "marian"
    )
    tfopt.models.save(model, tmp_path / "m.keras")
    assert generates(tmp_path / "m.keras")
    texts_are_those_of_the_reference(Generator.load(tmp_path / "m.keras", runtime="eager"), golden, "marian")


@pytest.mark.parametrize("name", ["t5", "marian"])
def test_smaller_ones_still_generate(golden, generation, tmp_path, name):
    model = from_pretrained(FOLDER / name, generation)
    smaller = tfopt.factorize(tfopt.shrink(model, heads=0.5, neurons=0.5), energy=0.9)
    config = seq2seq_config_of(smaller)
    assert (config.num_attention_heads, config.intermediate_size) == (1, 10)
    artifact = tfopt.export(tfopt.prune(smaller, 0.3), tmp_path / "m.tflite", lengths=[24])
    assert artifact.max_abs_error < 1e-3 and Generator.load(artifact.path).generate([[3, 4, 5]])[0].tokens
    with pytest.raises(InputError, match="layers of an encoder-decoder cannot be taken out, encoder would keep"):
        tfopt.shrink(model, layers=[0])


def test_untied_logits(tmp_path):
    config = Seq2SeqConfig(40, 16, 1, 1, 2, intermediate_size=24, max_position_embeddings=24, gated=True,
                           tie_word_embeddings=False, relative_buckets=8, relative_distance=12)  # fmt: skip
    save_pretrained(seq2seq(config), tmp_path / "m")
    assert "lm_head.weight" in load_file(tmp_path / "m" / "model.safetensors")
    artifact = tfopt.export(from_pretrained(tmp_path / "m", "keras"), tmp_path / "m.tflite", lengths=[16])
    assert artifact.max_abs_error < 1e-3 and artifact.lengths == (16,)


def test_other_artifacts_take_targets_of_their_own_length(golden, tmp_path):
    model, inputs = from_pretrained(FOLDER / "marian"), given(golden, "marian")
    tfopt.models.save(model, tmp_path / "m.keras")
    tfopt.export(model, tmp_path / "m", representative=inputs)
    for path in (tmp_path / "m.keras", tmp_path / "m"):
        found = tfopt.Predictor.load(path).predict(inputs)["logits"]
        np.testing.assert_allclose(found, golden["marian_logits"], atol=2e-4)


def test_sources_are_another_text(golden, files, tmp_path, tfopt_main):
    """Neither are their words repeated in the answer, nor is room of theirs kept for it."""
    decoder = TFLiteSeq2SeqDecoder(files["t5"], 1)
    source = list(range(2, 22))
    config = tfopt.GenerateConfig(max_tokens=3)
    plain = Generator(decoder).generate([source], config)[0].tokens
    penalized = dataclasses.replace(config, repetition_penalty=50.0)
    assert Generator(decoder).generate([source], penalized)[0].tokens[0] == plain[0]  # though the source has it
    assert plain[0] in source
    cut = Generator(decoder).generate([[2] * 10 + source + [3] * 9], dataclasses.replace(config, truncate=True))[0]
    assert cut.prompt_tokens == decoder.source_room
    with pytest.raises(InputError, match="this one needs a source beside it"):
        tfopt.perplexity(decoder, source)


def test_translators_on_the_command_line(golden, tmp_path, tfopt_main):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {f"w{i}": i for i in range(48)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w3"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A w1", special_tokens=[("w1", 1)])
    shutil.copytree(FOLDER / "t5", tmp_path / "m")
    tokenizer.save(str(tmp_path / "m" / "tokenizer.json"))
    tfopt.export(from_pretrained(tmp_path / "m"), tmp_path / "m.tflite", lengths=[24])
    ids = golden["t5_input_ids"][1, :15].tolist()
    (expected,) = Generator.load(tmp_path / "m.tflite").generate([[*ids, 1]], tfopt.GenerateConfig(max_tokens=5))
    prompt = " ".join(f"w{i}" for i in ids)
    code, out, err = tfopt_main("generate", tmp_path / "m.tflite", "--prompt", prompt, "--max-tokens", 5)
    assert (code, out.split()) == (0, [f"w{i}" for i in expected.tokens]), err  # the answer alone
    code, out, err = tfopt_main("predict", tmp_path / "m.tflite", "w4")
    assert code == 2 and "tfopt generate" in err


def test_files_whose_facts_are_not_those_of_their_graph(files, tmp_path):
    content = files["t5"].read_bytes()
    for old, new in ((b'"decoder_layers": 3', b'"decoder_layers": 9'), (b'"head_dim": 6', b'"head_dim": 3')):
        assert content.count(old) == 1
        (tmp_path / "m.tflite").write_bytes(content.replace(old, new))
        with pytest.raises(ModelFileError, match="not those of its shape|do not fit its shape"):
            TFLiteSeq2SeqDecoder(tmp_path / "m.tflite")


def test_what_cannot_be_is_refused(files, tmp_path, golden):
    decoder = TFLiteSeq2SeqDecoder(files["t5"], 1)
    with pytest.raises(InputError, match="the prompt has 30 tokens, the context holds 24"):
        Generator(decoder).generate([[3] * 30])
    with pytest.raises(InputError, match="speculative decoding is for causal language models"):
        Generator(decoder, draft="lookup")
    with decoder.open([0]) as session:
        with pytest.raises(InputError, match=r"token id must be in \[0, 48\), got 48"):
            session.extend(np.array([[48]]))
        with pytest.raises(InputError, match="no token that its mask shows"):
            session.read(np.array([[3, 4]]), np.zeros((1, 2), int))
        session.extend(np.array([[3, 4]]))
        with pytest.raises(InputError, match="this session has its sources"):
            session.read(np.array([[3, 4]]), np.ones((1, 2), int))
    model = from_pretrained(FOLDER / "t5")
    with pytest.raises(InputError, match=r"lengths of a source must be in \[1, 64\]"):
        tfopt.export(model, tmp_path / "m.tflite", lengths=[65])
    with pytest.raises(InputError, match="cache='int8' is for causal language models"):
        tfopt.export(model, tmp_path / "m.tflite", cache="int8")
    with pytest.raises(InputError, match="no static kind"):
        tfopt.export(model, tmp_path / "m.tflite", quantization="int8", representative=given(golden, "t5"))
    whole = files["t5"].read_bytes()
    for cut in (100, len(whole) // 2):
        (tmp_path / "cut.tflite").write_bytes(whole[:cut])
        with pytest.raises(ModelFileError):
            TFLiteSeq2SeqDecoder(tmp_path / "cut.tflite")
    for field, value, says in (
        ("relative_buckets", 6, "multiple of 4"), ("start_token", 99, "start_token must be in"),
        ("hidden_act", "mish", "hidden_act must be one of"), ("encoder_layers", 0, "encoder_layers must be from 1"),
        ("logit_scale", float("nan"), "logit_scale must be above 0"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=says):
            Seq2SeqConfig(40, **{field: value})


@pytest.mark.parametrize(("name", "change", "says"), [
    ("t5", {"feed_forward_proj": "gated-mish"}, "feed_forward_proj must be one of"),
    ("t5", {"num_layers": 3}, "lacks 'encoder.block.2"),
    ("t5", {"relative_attention_num_buckets": 2**20}, "relative_attention_num_buckets"),
    ("marian", {"decoder_ffn_dim": 24}, "decoder_ffn_dim must be encoder_ffn_dim"),
    ("marian", {"share_encoder_decoder_embeddings": False}, "tables of their own"),
    ("marian", {"normalize_before": True}, "are not supported"),
    ("marian", {"decoder_start_token_id": 99}, "start_token must be in"),
])  # fmt: skip
def test_folders_that_are_not_understood(tmp_path, name, change, says):
    shutil.copytree(FOLDER / name, tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelFileError, match=says):
        from_pretrained(tmp_path / "m")
