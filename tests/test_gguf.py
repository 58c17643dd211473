"""GGUF files that the package `gguf` wrote: the same logits as the model, the same ids as the tokenizer."""

import dataclasses
import io
import json

import gguf
import numpy as np
import pytest

import tfopt
from tfopt._keras import extras
from tfopt.data.stdlib_docs import read_stdlib_docs
from tfopt.decoding.weights import config_of
from tfopt.engine.opening import generates
from tfopt.errors import InputError, MissingFileError, ModelFileError
from tfopt.export.integers import config_named
from tfopt.models.gguf import gguf_config
from tfopt.models.gguf_file import GgufFile
from tfopt.quantization.calibration import quantize_weights
from tfopt.tflite.file import read_tflite

from . import gguf_files
from .decoders import FAMILIES, logits_of, make, tokens
from .test_golden import FOLDER, PROMPTS, inputs_of

KNOWN = ("llama", "qwen2", "qwen3", "smollm3", "gemma", "gemma2", "gemma3_text")


@pytest.mark.parametrize("family", KNOWN)
def test_a_file_gives_the_model_that_was_written(family, generation, tmp_path):
    config = FAMILIES[family]
    if family == "smollm3":  # files leave unsaid which layers do not turn: every fourth
        config = dataclasses.replace(config, num_hidden_layers=4, unrotated_layers=(3,))
    model = make(config, generation)
    path = gguf_files.write(tmp_path / "m.gguf", model, config)
    assert generates(path) and gguf_config(path) == config
    again = tfopt.models.from_pretrained(path, generation)
    np.testing.assert_allclose(logits_of(again, tokens()), logits_of(model, tokens()), atol=1e-4)


def test_joined_projections_and_stretched_frequencies(tmp_path):
    model, plain = make("llama"), FAMILIES["llama"]
    path = gguf_files.write(tmp_path / "phi.gguf", model, plain, kind="phi3")
    np.testing.assert_allclose(
        logits_of(tfopt.models.from_pretrained(path), tokens()), logits_of(model, tokens()), atol=1e-4
    )
    factors = (1.0, 1.0, 2.0, 8.0)
    stretched = make(dataclasses.replace(plain, rope_factors=factors))
    path = gguf_files.write(tmp_path / "l3.gguf", model, plain, factors=factors)
    np.testing.assert_allclose(
        logits_of(tfopt.models.from_pretrained(path), tokens()), logits_of(stretched, tokens()), atol=1e-4
    )


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_matrices_are_widened(kind, tmp_path):
    config = dataclasses.replace(FAMILIES["llama"], intermediate_size=64)
    model = make(config)
    path = gguf_files.write(tmp_path / "m.gguf", model, config, quantized=kind)
    again, number = tfopt.models.from_pretrained(path), gguf.GGMLQuantizationType[kind]
    kernel = model.get_layer("layer_1_up").kernel.numpy().T
    expected = gguf.quants.dequantize(gguf.quants.quantize(kernel, number), number).reshape(kernel.shape)
    np.testing.assert_array_equal(again.get_layer("layer_1_up").kernel.numpy().T, expected)
    with GgufFile(path) as file:
        for tensor in gguf.GGUFReader(path).tensors:
            np.testing.assert_array_equal(
                file[tensor.name], gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(
                    file.shapes[tensor.name]
                )
            )  # fmt: skip


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1"])
def test_blocks_of_four_bits_keep_their_values(kind, tmp_path):
    """Rounded once more, as everything was before, they lose ten times as much."""
    config = dataclasses.replace(FAMILIES["llama"], intermediate_size=64)
    model = tfopt.models.from_pretrained(
        gguf_files.write(tmp_path / "m.gguf", make(config), config, quantized=kind)
    )
    meant = config_named("dynamic_int4", model)
    assert (meant.weight_symmetric, meant.smooth, meant.table_bits) == (False, None, 8)
    assert config_named("dynamic_int4", make(config)).weight_symmetric
    grids = quantize_weights(model, meant)[0].grids
    errors = {path: np.square(g.values - g.source).mean() / np.square(g.source).mean() for path, g in grids.items()}
    assert max(error for path, error in errors.items() if grids[path].spec.has_offsets) < 1e-4
    artifact = tfopt.export(model, tmp_path / "m.tflite", lengths=[32], quantization="dynamic_int4")
    assert artifact.quantization == "dynamic_int4"
    names = [c.name for c in read_tflite(artifact.path).constants]
    products = [path for path, grid in grids.items() if grid.spec.has_offsets]
    assert sum("/offsets/" in name for name in names) == len(products)
    sums = read_tflite(artifact.path).operators["SUM"]
    assert 0 < sums < len(products), "what several weights are multiplied by is summed once"
    ids = tokens(2)
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    found, want = tfopt.Predictor.load(artifact.path).predict(inputs)["logits"], logits_of(model, ids)
    assert np.corrcoef(found.ravel(), want.ravel())[0, 1] > 0.998


def test_logits_and_text_are_those_of_llama_cpp(tmp_path, generation):
    golden = np.load(FOLDER / "golden.npz")
    model = tfopt.models.from_pretrained(FOLDER, generation)
    config = config_of(model)
    tokenizer = gguf_files.byte_level(json.loads((FOLDER / "tokenizer.json").read_text()))
    path = gguf_files.write(tmp_path / "m.gguf", model, config, tokenizer=tokenizer)
    again = tfopt.models.from_pretrained(path, generation)
    generator = tfopt.Generator.load(again, runtime="eager")
    for number in PROMPTS:
        prompt, ids = str(golden["prompts"][number]), golden[f"ids_{number}"]
        np.testing.assert_allclose(
            np.asarray(again(inputs_of(ids)))[0], golden[f"llama_cpp_logits_{number}"], atol=5e-5
        )
        (answer,) = generator.generate(prompt, tfopt.GenerateConfig(max_tokens=32, stop_tokens=()))
        assert generator.tokenizer.encode_ids(prompt) == ids.tolist()
        assert list(answer.tokens) == golden[f"llama_cpp_greedy_{number}"].tolist()


TEXTS = (
    "Once upon a time, there was a little girl.",
    " two  blanks",
    "Zoë had 3 cats - and a 🐱!",
    "the then them",
)


@pytest.fixture(scope="module")
def pieces():
    """What SentencePiece trains on Python's own documentation, byte-pair encoding with bytes for what is rare."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="needs sentencepiece")
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(read_stdlib_docs(0)[0].texts[:400]), model_writer=written, model_type="bpe",
        vocab_size=600, byte_fallback=True, minloglevel=2, normalization_rule_name="identity",
        remove_extra_whitespaces=False,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())


def test_pieces_with_scores_are_joined_as_sentencepiece_does(pieces, tmp_path):
    count = pieces.get_piece_size()
    config = dataclasses.replace(FAMILIES["llama"], vocab_size=count)
    path = gguf_files.write(tmp_path / "m.gguf", make(config), config, tokenizer=gguf_files.pieces(
        [pieces.id_to_piece(i) for i in range(count)], [pieces.get_score(i) for i in range(count)]
    ))  # fmt: skip
    tokenizer = tfopt.Generator.load(path).tokenizer
    for text in (*TEXTS, *read_stdlib_docs(0)[1].texts[:50]):
        ids = tokenizer.encode_ids(text)
        assert ids == [1, *pieces.encode(text)], text
        assert tokenizer.tokenizer.decode(ids) == text


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_byte_levels_are_cut_as_they_are_named(pre, tmp_path):
    tokenizer = json.loads((FOLDER / "tokenizer.json").read_text())
    config = dataclasses.replace(FAMILIES["llama"], vocab_size=512)
    begins = [("add_bos_token_id", 0)] if pre == "llama-bpe" else []
    path = gguf_files.write(
        tmp_path / "m.gguf", make(config), config, tokenizer=gguf_files.byte_level(tokenizer, pre), metadata=begins
    )
    found = tfopt.Generator.load(path).tokenizer
    for text in (*TEXTS, "12345 x1y22", "a\n\n  b"):
        ids = found.encode_ids(text)
        assert found.tokenizer.decode(ids, skip_special_tokens=True) == text
        assert (ids[0] == 0) == (pre == "llama-bpe")
    digits = [found.tokenizer.decode([i]) for i in found.encode_ids("12345")][pre == "llama-bpe" :]
    # Each digit by itself, or up to three at once as far as there are tokens for them.
    assert digits == list("12345") if pre in ("smollm", "qwen2") else "".join(digits) == "12345"


def test_a_tokenizer_of_an_unknown_kind_is_said_and_left_out(tmp_path, caplog):
    tokenizer = json.loads((FOLDER / "tokenizer.json").read_text())
    config = dataclasses.replace(FAMILIES["llama"], vocab_size=512)
    path = gguf_files.write(
        tmp_path / "m.gguf", make(config), config, tokenizer=gguf_files.byte_level(tokenizer, "somebodys")
    )
    model = tfopt.models.from_pretrained(path)
    assert "words cut as 'somebodys', which is not known: it takes token ids only" in caplog.text
    assert extras.TOKENIZERS[0] not in extras.of(model)


BAD = {
    "cut": (lambda content: content[:-100], "ends at byte .*, the file has .*: it is cut short"),
    "cut in the header": (lambda content: content[:200], "no GGUF file that can be read"),
    "something else": (lambda content: b"GGUX" + content[4:], "does not begin with 'GGUF'"),
    "version": (lambda content: content[:4] + b"\x09" + content[5:], "it has version 9, known are 2, 3"),
    "counts": (lambda content: content[:8] + b"\xff" * 8 + content[16:], "announces .* tensors, more than"),
    "no name": (lambda content: content.replace(b"general.architecture", b"general.architectuur"), "None is not"),
    "unknown": (lambda content: content.replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0lluma"),
                "architecture 'lluma' is not supported; nearest: llama"),
    "a tensor": (lambda content: content.replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_op.weight"),
                 r"lacks 'model.layers.1.mlp.up_proj.weight' and has unknown 'model.layers.1.ffn_op.weight'"),
    "twice": (lambda content: content.replace(b"blk.1.ffn_up.weight", b"blk.0.ffn_up.weight"), "is there twice"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_damaged_files_are_told(case, tmp_path, tfopt_main):
    change, says = BAD[case]
    path = gguf_files.write(tmp_path / "m.gguf", make("llama"), FAMILIES["llama"])
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ModelFileError, match=says):
        tfopt.models.from_pretrained(path)
    code, out, errors = tfopt_main("export", path, "-o", tmp_path / "m.tflite")
    assert code == 2 and not out and len(errors.splitlines()) == 1 and not (tmp_path / "m.tflite").exists()


def test_files_that_do_not_fit_themselves(tmp_path):
    tokenizer = gguf_files.byte_level(json.loads((FOLDER / "tokenizer.json").read_text()))
    config, model = FAMILIES["llama"], make("llama")
    path = gguf_files.write(tmp_path / "a.gguf", model, config, tokenizer=tokenizer)
    with pytest.raises(ModelFileError, match="has 512 tokens, its table 64 rows"):
        tfopt.models.from_pretrained(path)
    layers = dataclasses.replace(config, num_hidden_layers=1)
    path = gguf_files.write(tmp_path / "b.gguf", make(layers), dataclasses.replace(layers, rope_theta=1e4))
    content = path.read_bytes().replace(b"llama.block_count\x04\0\0\0\x01", b"llama.block_count\x04\0\0\0\x02")
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"lacks 'model.layers.1.input_layernorm.weight' \(9 missing"):
        tfopt.models.from_pretrained(path)
    with pytest.raises(MissingFileError, match="model folder not found"):
        tfopt.models.from_pretrained(tmp_path / "none.gguf")
    with pytest.raises(InputError, match="labels and heads are for encoders"):
        tfopt.models.from_pretrained(path, num_labels=3)


def test_metadata_of_other_kinds_ends_in_an_error(tmp_path):
    tokenizer = json.loads((FOLDER / "tokenizer.json").read_text())
    config = dataclasses.replace(FAMILIES["llama"], vocab_size=512)

    def arrays(writer):
        gguf_files.byte_level(tokenizer, "smollm")(writer)
        writer.kv_data[0]["tokenizer.ggml.pre"] = gguf.gguf_writer.GGUFValue(
            ["smollm", "x"], gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING
        )

    def long(writer):
        gguf_files.pieces(["<unk>", "<s>", "</s>", "a" * 600, *map(str, range(508))], [0.0] * 512)(writer)

    path = gguf_files.write(tmp_path / "a.gguf", make(config), config, tokenizer=arrays)
    assert extras.TOKENIZERS[0] not in extras.of(tfopt.models.from_pretrained(path))
    path = gguf_files.write(tmp_path / "b.gguf", make(config), config, tokenizer=long)
    with pytest.raises(ModelFileError, match="a token of 600 characters, 512 are the most"):
        tfopt.models.from_pretrained(path)
    path = gguf_files.write(tmp_path / "c.gguf", make("llama"), FAMILIES["llama"], factors=np.ones(1 << 15))
    with pytest.raises(ModelFileError, match="more than half a head"):
        tfopt.models.from_pretrained(path)
    path = gguf_files.write(
        tmp_path / "d.gguf", make("llama"), FAMILIES["llama"], metadata=[("add_sliding_window", 0)]
    )
    assert gguf_config(path).sliding_window is None


def test_a_type_that_cannot_be_widened_is_named(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("token_embd.weight", np.zeros((8, 8), np.int16))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        step()
    writer.close()
    with pytest.raises(ModelFileError, match="'token_embd.weight' is of type I16, which cannot be widened"):
        GgufFile(tmp_path / "m.gguf")
