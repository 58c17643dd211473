"""KerasHub's models that generate, in memory and saved, against KerasHub itself; skipped where it is not installed."""

import importlib.util
import io
import json

import numpy as np
import pytest
import tensorflow as tf

import tfopt
from tfopt._keras import keras_api
from tfopt.data.tokenizers import train_bpe
from tfopt.errors import InputError
from tfopt.export.integers import config_named
from tfopt.models.keras_hub import FAMILIES, as_decoder

pytestmark = pytest.mark.skipif(importlib.util.find_spec("keras_hub") is None, reason="needs the extra kerashub")


class Hub:
    """KerasHub, imported when a test asks for it rather than by whoever collects tests."""

    def __getattr__(self, name):
        return getattr(importlib.import_module("keras_hub"), name)


hub = Hub()
SIZES = {"vocabulary_size": 120, "num_layers": 2, "hidden_dim": 32, "intermediate_dim": 64}
GROUPED = {"num_query_heads": 4, "num_key_value_heads": 2}
SETTINGS = {
    "GPT2": {"num_heads": 4, "max_sequence_length": 32}, "Llama": GROUPED, "Llama3": GROUPED,
    "Mistral": {**GROUPED, "sliding_window": 5, "head_dim": 16}, "Qwen": GROUPED, "Phi3": GROUPED,
    "Qwen3": {**GROUPED, "head_dim": 12, "tie_word_embeddings": False, "sliding_window_size": 5},
    "Gemma": {**GROUPED, "head_dim": 12}, "Gemma3": {
        **GROUPED, "head_dim": 12, "image_size": None, "use_post_ffw_norm": True, "use_post_attention_norm": True,
        "use_sliding_window_attention": True, "sliding_window_size": 5, "num_layers": 6,
        "attention_logit_soft_cap": 50.0,
    },
}  # fmt: skip
CORPUS = ["The cat sat on the mat and looked at the moon.", "First Citizen: we know it, speak, speak.", "1 + 1 = 2"]


def backbone(family, **changes):
    """With weights and biases that all count."""
    keras_api.keras_module("keras").utils.set_random_seed(0)
    made = getattr(hub.models, f"{family}Backbone")(**{**SIZES, **SETTINGS[family], **changes})
    rng = np.random.default_rng(0)
    for weight in made.weights:
        weight.assign(weight.numpy() + 0.3 * rng.standard_normal(weight.shape).astype(np.float32))
    return made


def task(family, preprocessor=None, **changes):
    model = getattr(hub.models, f"{family}CausalLM")(
        backbone=backbone(family, **changes), preprocessor=preprocessor
    )
    model.compile(sampler="greedy")
    return model


def test_every_family_of_the_table_is_tried():
    assert {f"{name}Backbone" for name in SETTINGS} == set(FAMILIES)


GEMMA2 = {"use_post_ffw_norm": True, "use_post_attention_norm": True, "attention_logit_soft_cap": 50.0,
          "final_logit_soft_cap": 30.0, "use_sliding_window_attention": True, "sliding_window_size": 5}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "changes"),
    [*((family, {}) for family in SETTINGS), ("Gemma", GEMMA2)],
    ids=[*SETTINGS, "Gemma2"],
)
def test_logits_are_those_of_keras_hub(family, changes):
    model, ids = task(family, **changes), np.random.default_rng(1).integers(1, 120, (2, 12)).astype(np.int32)
    mask = np.ones_like(ids)
    theirs = np.asarray(model({"token_ids": ids, "padding_mask": mask}))
    ours = np.asarray(as_decoder(model)({"input_ids": ids, "attention_mask": mask}))
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())
    again = np.asarray(as_decoder(model.backbone)({"input_ids": ids, "attention_mask": mask}))
    np.testing.assert_array_equal(again, ours)


@pytest.fixture(scope="module")
def with_byte_pairs():
    raw = json.loads(train_bpe(CORPUS * 20, 300, "<|endoftext|>").to_str())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in raw["merges"]]
    tokenizer = hub.models.GPT2Tokenizer(vocabulary=raw["vocab"], merges=merges)
    preprocessor = hub.models.GPT2CausalLMPreprocessor(tokenizer, sequence_length=32)
    return task("GPT2", preprocessor, vocabulary_size=len(raw["vocab"]))


@pytest.fixture(scope="module")
def with_pieces():
    trainer = pytest.importorskip("sentencepiece").SentencePieceTrainer
    written = io.BytesIO()
    trainer.train(
        sentence_iterator=iter(CORPUS * 40), model_writer=written, vocab_size=330, model_type="bpe", byte_fallback=True,
        pad_id=-1, normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    tokenizer = hub.models.LlamaTokenizer(proto=written.getvalue())
    preprocessor = hub.models.LlamaCausalLMPreprocessor(tokenizer, sequence_length=32)
    return task("Llama", preprocessor, vocabulary_size=tokenizer.vocabulary_size())


@pytest.fixture(scope="module")
def with_pieces_of_gemma():
    """Padding and the end of texts are the first tokens, and no blank is put before a text."""
    trainer = pytest.importorskip("sentencepiece").SentencePieceTrainer
    written = io.BytesIO()
    trainer.train(
        sentence_iterator=iter(CORPUS * 20), model_writer=written, model_type="bpe", vocab_size=300,
        byte_fallback=True, pad_id=0, eos_id=1, bos_id=2, unk_id=3, add_dummy_prefix=False, minloglevel=2,
        normalization_rule_name="identity", remove_extra_whitespaces=False, hard_vocab_limit=False,
        pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>",
        user_defined_symbols=["<start_of_turn>", "<end_of_turn>"],
    )  # fmt: skip
    tokenizer = hub.models.GemmaTokenizer(written.getvalue())
    preprocessor = hub.models.GemmaCausalLMPreprocessor(tokenizer, sequence_length=32)
    return task("Gemma", preprocessor, vocabulary_size=tokenizer.vocabulary_size())


def test_pieces_of_the_users_own_are_whole(with_pieces_of_gemma):
    tokenizer, theirs = (
        tfopt.Generator.load(with_pieces_of_gemma).tokenizer,
        with_pieces_of_gemma.preprocessor.tokenizer,
    )
    for text in ("<start_of_turn>user", "a<end_of_turn>b", "The cat"):
        assert tokenizer.encode_ids(text)[1:] == list(map(int, theirs(text)))
    assert len(tokenizer.encode_ids("<start_of_turn>")) == 2


@pytest.mark.parametrize("which", ["with_byte_pairs", "with_pieces", "with_pieces_of_gemma"])
def test_greedy_text_is_that_of_keras_hub(which, request, tmp_path):
    model = request.getfixturevalue(which)
    prompt = "First Citizen:"
    theirs = model.generate(prompt, max_length=24, stop_token_ids=None)
    artifact = tfopt.export(model, tmp_path / "m.tflite")
    for source in (model, artifact.path):
        generator = tfopt.Generator.load(source)
        count = 24 - len(generator.tokenizer.encode_ids(prompt))
        (answer,) = generator.generate(prompt, tfopt.GenerateConfig(max_tokens=count, stop_tokens=()))
        assert prompt + answer.text == theirs


def test_a_saved_model_generates_from_the_command_line(with_byte_pairs, tmp_path, tfopt_main):
    path = tmp_path / "m.keras"
    with_byte_pairs.save(path)
    config = tfopt.GenerateConfig(max_tokens=5, stop_tokens=())
    (answer,) = tfopt.Generator.load(with_byte_pairs, runtime="eager").generate("The cat", config)
    code, shown, _ = tfopt_main(
        "generate",
        path,
        "--import",
        "keras_hub",
        "--runtime",
        "eager",
        "--prompt",
        "The cat",
        "--max-tokens",
        5,
        "--json",
    )
    assert code == 0 and answer.text.startswith(json.loads(shown)["text"])
    exported = tmp_path / "m.tflite"
    code, _, told = tfopt_main("export", path, "--import", "keras_hub", "-o", exported)
    assert code == 0, told
    assert tfopt.Generator.load(exported).generate("The cat", config)[0].text == answer.text


def test_what_the_decoder_does_not_know_is_refused():
    opt = hub.models.OPTBackbone(**SIZES, num_heads=4, max_sequence_length=32)
    with pytest.raises(InputError, match="OPT of KerasHub is not known to the decoder; known: GPT2, Llama"):
        as_decoder(hub.models.OPTCausalLM(backbone=opt, preprocessor=None))
    with pytest.raises(InputError, match="rope_position_scaling_factor 4.0 is not known"):
        as_decoder(task("Llama", rope_position_scaling_factor=4.0))
    own = hub.models.BertBackbone(
        vocabulary_size=50, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=16, max_sequence_length=8
    )
    assert as_decoder(own) is own


def test_padding_is_of_the_part_that_its_mask_is_of():
    """Whisper has a mask of its decoder only; hidden states of its encoder have another length."""
    sizes = {**SIZES, "num_heads": 4, "num_mels": 8, "max_encoder_sequence_length": 12}
    teacher, student = (hub.models.WhisperBackbone(**sizes, max_decoder_sequence_length=8) for _ in range(2))
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 120, (4, 6)).astype(np.int32)
    mask = (np.arange(6)[None] < np.arange(3, 7)[:, None]).astype(np.int32)
    sounds = rng.standard_normal((4, 12, 8)).astype(np.float32)
    given = {"encoder_features": sounds, "decoder_token_ids": ids * mask, "decoder_padding_mask": mask}
    distiller = tfopt.Distiller(student, teacher)
    distiller.compile("adam")
    data = distiller.teach(tf.data.Dataset.from_tensor_slices(given).batch(4))
    _, targets = next(iter(data))
    heard, said = (targets[f"logits_{part}_sequence_output"].numpy() for part in ("encoder", "decoder"))
    assert heard.any(-1).all() and (said.any(-1) == (mask > 0)).all()


def test_names_mean_for_a_task_what_they_mean_for_its_decoder():
    """On the command line they are looked up before a decoder is made of it."""
    config = config_named("dynamic_int4", task("Llama"))
    assert (config.weight_granularity, config.table_bits) == (32, 8)
