"""Hugging Face folders of every architecture: read, written, and understood by KerasHub, which others wrote."""

import dataclasses
import json
import os

import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import load_file, save_file

import tfopt
from tfopt._keras import keras_api
from tfopt.decoding.weights import config_of
from tfopt.engine.opening import generates
from tfopt.errors import InputError, MissingFileError, ModelFileError
from tfopt.models import BertConfig, bert, families, from_pretrained, save_pretrained
from tfopt.runtime.eager_decoder import EagerDecoder

from .decoders import FAMILIES, logits_of, make, tokens

_ENCODER = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
            "intermediate_size": 48, "max_position_embeddings": 24, "hidden_dropout_prob": 0.0}  # fmt: skip
ENCODERS = {
    "bert": BertConfig(**_ENCODER),
    "distilbert": BertConfig(**_ENCODER, type_vocab_size=0),
    "roberta": BertConfig(**_ENCODER, type_vocab_size=1, position_offset=2, layer_norm_eps=1e-5),
}


def encoder(kind, generation="tf_keras", **settings):
    model = bert(ENCODERS[kind], generation=generation, **settings)
    rng = np.random.default_rng(1)
    for weight in keras_api.weights(model):
        values = rng.normal(1.0 if weight.name == "gamma" else 0.0, 0.3, tuple(weight.variable.shape))
        if not weight.name.startswith("moving_"):
            weight.variable.assign(values.astype(np.float32))
    return model


def hidden_of(model, ids, mask):
    return np.asarray(model({"input_ids": ids, "attention_mask": mask})["last_hidden_state"])


@pytest.mark.parametrize("family", FAMILIES)
def test_decoders_come_back_as_they_went(family, generation, tmp_path):
    model = make(family, generation)
    files = save_pretrained(model, tmp_path, shard_bytes=20_000)
    assert sum(f.suffix == ".safetensors" for f in files) > 1 and generates(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == family
    again = from_pretrained(tmp_path, "keras" if generation == "tf_keras" else "tf_keras")
    np.testing.assert_allclose(logits_of(again, tokens()), logits_of(model, tokens()), atol=1e-4)


@pytest.mark.parametrize("kind", ENCODERS)
def test_encoders_come_back_as_they_went(kind, generation, tmp_path):
    model = encoder(kind, generation)
    save_pretrained(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == kind and not generates(tmp_path)
    mask = np.ones_like(tokens())
    found = hidden_of(from_pretrained(tmp_path, generation), tokens(), mask)
    np.testing.assert_array_equal(found, hidden_of(model, tokens(), mask))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_floats(dtype, tmp_path):
    model = make("llama")
    save_pretrained(model, tmp_path, dtype=dtype)
    found = {w.path: keras_api.to_numpy(w.variable) for w in keras_api.weights(from_pretrained(tmp_path))}
    for weight in keras_api.weights(model):
        expected = tf.cast(tf.cast(keras_api.to_numpy(weight.variable), dtype), tf.float32)
        np.testing.assert_array_equal(found[weight.path], expected)


HUB = {"gpt2": "GPT2Backbone", "llama": "Llama3Backbone", "mistral": "MistralBackbone", "qwen2": "QwenBackbone",
       "qwen3": "Qwen3Backbone", "smollm3": "SmolLM3Backbone", "gemma": "GemmaBackbone",
       "gemma2": "GemmaBackbone", "gemma3_text": "Gemma3Backbone",
       "bert": "BertBackbone", "distilbert": "DistilBertBackbone", "roberta": "RobertaBackbone"}  # fmt: skip


@pytest.mark.parametrize("family", HUB)
def test_kerashub_reads_the_same_from_our_folders(family, tmp_path):
    hub = pytest.importorskip("keras_hub", reason="needs the extra kerashub")
    ids = tokens(1, 12)
    mask, causal = np.ones_like(ids), family in FAMILIES
    model = make(family) if causal else encoder(family)
    if family == "roberta":  # which KerasHub builds without the one row that public checkpoints have of it
        table = next(w for w in keras_api.weights(model) if w.path == "token_type_embeddings/embeddings").variable
        table.assign(np.zeros(table.shape))
    save_pretrained(model, tmp_path)
    if family == "bert":
        add_pooler(tmp_path / "model.safetensors")
    theirs = getattr(hub.models, HUB[family]).from_preset(str(tmp_path))
    inputs = {"token_ids": ids, "padding_mask": mask}
    if family == "bert":
        inputs["segment_ids"] = np.zeros_like(ids)
    found = theirs(inputs)
    found = theirs.token_embedding(found, reverse=True) if causal else found
    found = np.asarray(found["sequence_output"] if family == "bert" else found)
    ours = logits_of(model, ids) if causal else hidden_of(model, ids, mask)
    if family != "mistral":
        close = 2e-3 if family == "bert" else 2e-4  # KerasHub computes BERT's gelu by tanh
        np.testing.assert_allclose(found, ours, atol=close * np.abs(ours).max())
        return
    # KerasHub's Mistral is off by a few thousandths even without a window; another window is off by far more.
    assert np.abs(found - ours).max() < 0.01 * np.abs(ours).max()
    for window in (5, 7):
        other = tfopt.models.causal_lm(dataclasses.replace(FAMILIES["mistral"], sliding_window=window))
        other.set_weights(model.get_weights())
        assert np.abs(logits_of(other, ids) - ours).max() > 0.05 * np.abs(ours).max()


def test_joined_projections_come_apart(tmp_path):
    layout = families.FAMILIES["phi3"]
    model, ids = make("llama"), tokens(1, 12)
    weights = {w.path: keras_api.to_numpy(w.variable) for w in keras_api.weights(model)}
    raw = layout.write_config(FAMILIES["llama"])
    (tmp_path / "config.json").write_text(json.dumps({**raw, "rope_scaling": None}))
    save_file(
        {e.theirs: e.write(weights) for e in layout.entries(FAMILIES["llama"])}, tmp_path / "model.safetensors"
    )
    np.testing.assert_allclose(logits_of(from_pretrained(tmp_path), ids), logits_of(model, ids), atol=1e-5)


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}  # fmt: skip


def test_stretched_frequencies_are_those_of_kerashub_and_come_back(tmp_path):
    hub = pytest.importorskip("keras_hub", reason="needs the extra kerashub")
    save_pretrained(make("llama"), tmp_path / "a")
    plain, ids = logits_of(make("llama"), tokens(1, 40)), tokens(1, 40)
    changed(tmp_path / "a", rope_scaling=LLAMA3)
    theirs = hub.models.Llama3Backbone.from_preset(str(tmp_path / "a"))
    found = theirs({"token_ids": ids, "padding_mask": np.ones_like(ids)})
    found = np.asarray(theirs.token_embedding(found, reverse=True))
    ours = from_pretrained(tmp_path / "a")
    assert np.abs(logits_of(ours, ids) - plain).max() > 0.1
    np.testing.assert_allclose(logits_of(ours, ids), found, atol=2e-4 * np.abs(found).max())
    save_pretrained(ours, tmp_path / "b")
    np.testing.assert_array_equal(logits_of(from_pretrained(tmp_path / "b"), ids), logits_of(ours, ids))
    changed(tmp_path / "a", rope_scaling={"rope_type": "linear", "factor": 4.0})
    halved = from_pretrained(tmp_path / "a")
    with pytest.raises(ModelFileError, match="'llama3' are described wrongly"):
        changed(tmp_path / "a", rope_scaling={"rope_type": "llama3", "factor": "x"})
        from_pretrained(tmp_path / "a")
    assert np.abs(logits_of(halved, ids) - plain).max() > 0.1


def test_what_folders_leave_unsaid_or_say_by_null(tmp_path):
    """SmolLM3 ties its table without saying so; Mistral's null window is none, not the default."""
    save_pretrained(make("smollm3"), tmp_path / "a")
    raw = json.loads((tmp_path / "a" / "config.json").read_text())
    del raw["tie_word_embeddings"]
    (tmp_path / "a" / "config.json").write_text(json.dumps(raw))
    assert config_of(from_pretrained(tmp_path / "a")).tie_word_embeddings
    save_pretrained(make("mistral"), tmp_path / "b")
    changed(tmp_path / "b", sliding_window=None)
    assert config_of(from_pretrained(tmp_path / "b")).sliding_window is None


@pytest.mark.parametrize("change", [
    {"model_type": "smollm3", "no_rope_layer_interval": 0}, {"model_type": "gemma2", "query_pre_attn_scalar": 0},
    {"rope_scaling": {"rope_type": "linear", "factor": 10**400}}, {"rope_theta": None, "rope_parameters": {"rope_theta": 10**400}},
    {"model_type": "smollm3", "no_rope_layers": [[1], 2]},
])  # fmt: skip
def test_numbers_of_families_have_ranges(change, tmp_path):
    save_pretrained(make("llama"), tmp_path)
    changed(tmp_path, **change)
    with pytest.raises(ModelFileError):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("family", ["smollm3", "gemma2", "gemma3_text"])
def test_layers_keep_their_kind_when_others_go(family):
    model = make(family)
    smaller = tfopt.shrink(model, layers=[0])
    kinds = [(config_of(m).window_of(i), config_of(m).frequencies_of(i)) for m, i in ((model, 1), (smaller, 0))]
    assert kinds[0] == kinds[1]
    with EagerDecoder(smaller).open([0]) as session:
        np.testing.assert_allclose(session.extend(tokens(), every=True), logits_of(smaller, tokens()), atol=1e-4)


def add_pooler(path):
    """What BERT checkpoints have and KerasHub asks for."""
    from safetensors.numpy import load_file, save_file

    pooler = {"pooler.dense.weight": np.zeros((32, 32), np.float32), "pooler.dense.bias": np.zeros(32, np.float32)}
    save_file({**load_file(path), **pooler}, path)


def test_a_folder_holds_the_model_that_was_written_last(tmp_path):
    save_pretrained(make("llama"), tmp_path)
    for seed, shard in ((1, 20_000), (2, 10**9), (3, 30_000)):
        model = make("llama", seed=seed)
        save_pretrained(model, tmp_path, shard_bytes=shard)
        np.testing.assert_allclose(
            logits_of(from_pretrained(tmp_path), tokens()), logits_of(model, tokens()), atol=1e-5
        )


def test_heads_are_not_lost_silently(tmp_path):
    with pytest.raises(InputError, match="no public layout holds a classifier with pooling 'mean'; build it with"):
        save_pretrained(encoder("bert", num_labels=3), tmp_path)


def gelu(x):
    from math import erf

    return x * (1 + np.vectorize(erf)(x / np.sqrt(2))) / 2


def numpy_head(kind, head, t, hidden):
    """What a head computes from the last hidden states, by the names of its tensors in public checkpoints."""

    def dense(x, name):
        return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]

    if head == "tokens":
        return dense(hidden, "classifier")
    if head == "span":
        return dense(hidden, "qa_outputs")
    if head == "masked_lm":
        first, norm, last = {
            "bert": ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias"),
            "roberta": ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias"),
            "distilbert": ("vocab_transform", "vocab_layer_norm", "vocab_projector.bias"),
        }[kind]  # fmt: skip
        x = gelu(dense(hidden, first))
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + ENCODERS[kind].layer_norm_eps)
        table = next(v for n, v in t.items() if n.endswith("word_embeddings.weight"))
        return (x * t[f"{norm}.weight"] + t[f"{norm}.bias"]) @ table.T + t[last]
    first, last = {
        "bert": ("pooler.dense", "classifier"), "roberta": ("classifier.dense", "classifier.out_proj"),
        "distilbert": ("pre_classifier", "classifier"),
    }[kind]  # fmt: skip
    first = f"bert.{first}" if kind == "bert" else first
    act = np.tanh if kind != "distilbert" else lambda x: np.maximum(x, 0)
    return dense(act(dense(hidden[:, 0], first)), last)


HEADS = [
    ("classification", {"num_labels": 3, "pooling": "pooler"}), ("tokens", {"num_labels": 3, "head": "tokens"}),
    ("span", {"head": "span"}), ("masked_lm", {"head": "masked_lm"}),
]  # fmt: skip


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize(("head", "settings"), HEADS, ids=[h for h, _ in HEADS])
def test_heads_come_back_and_mean_what_their_public_names_mean(kind, head, settings, generation, tmp_path):
    model = encoder(kind, generation, **settings)
    save_pretrained(model, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    raw = json.loads((tmp_path / "config.json").read_text())
    assert raw["architectures"][0].startswith({"bert": "Bert", "roberta": "Roberta", "distilbert": "Distil"}[kind])
    ids = tokens(2, 10)
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    hidden = hidden_of(from_pretrained(tmp_path, generation), ids, inputs["attention_mask"])
    expected = numpy_head(kind, head, stored, hidden=hidden)
    arguments = {"pooling": "pooler"} if head == "classification" else {}
    again = from_pretrained(tmp_path, generation, head=head, **arguments)  # as many classes as are stored
    if "token_type_ids" in again.input:
        inputs["token_type_ids"] = np.zeros_like(ids)
    found = again(inputs)
    found = np.stack([found["start_logits"], found["end_logits"]], -1) if head == "span" else np.asarray(found)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_head_is_read_whole_or_begins_fresh(tmp_path):
    save_pretrained(encoder("bert"), tmp_path)
    assert from_pretrained(tmp_path, num_labels=5, pooling="pooler").output_shape == (None, 5)
    with pytest.raises(InputError, match="num_labels must be 2 or more for head 'tokens', got None"):
        from_pretrained(tmp_path, head="tokens")
    save_pretrained(encoder("bert", num_labels=3, head="tokens"), tmp_path)
    with pytest.raises(ModelFileError, match=r"'classifier.weight' has shape \(3, 32\), .* asks for \(4, 32\)"):
        from_pretrained(tmp_path, head="tokens", num_labels=4)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["classifier.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelFileError, match="lacks 'classifier.bias', a part of its head"):
        from_pretrained(tmp_path, head="tokens")
    with pytest.raises(InputError, match="pooling 'pooler' is for classifiers, got head 'tokens'"):
        bert(ENCODERS["bert"], 3, pooling="pooler", head="tokens")
    save_pretrained(make("llama"), tmp_path / "llama")
    with pytest.raises(InputError, match="head='tokens' is for encoders"):
        from_pretrained(tmp_path / "llama", head="tokens")


def test_a_tokenizer_stays_with_its_model(tmp_path):
    from tfopt.data.tokenizers import save_tokenizer, train_bpe

    save_pretrained(make("llama"), tmp_path / "a")
    save_tokenizer(train_bpe(["some words to learn"] * 3, 300), tmp_path / "a" / "tokenizer.json")
    model = from_pretrained(tmp_path / "a")
    tfopt.models.save(model, tmp_path / "m.keras")
    save_pretrained(tfopt.models.load(tmp_path / "m.keras"), tmp_path / "b")
    assert (tmp_path / "b" / "tokenizer.json").read_bytes() == (tmp_path / "a" / "tokenizer.json").read_bytes()
    tfopt.export(model, tmp_path / "m.tflite", format="tflite")
    for source in (tmp_path / "m.keras", tmp_path / "m.tflite"):
        assert tfopt.Generator.load(source).tokenizer.encode_ids("some words") == [
            1,
            *model_ids("some words", tmp_path),
        ]


def model_ids(text, folder):
    from tfopt.data.tokenizers import load_tokenizer

    return load_tokenizer(folder / "a").encode(text).ids[1:-1]


def changed(folder, **values):
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, **values}))


@pytest.mark.parametrize(("change", "says"), [
    ({"model_type": "xyzzy"}, "architecture 'xyzzy' is not supported; supported: 'bert', 'roberta'"),
    ({"model_type": "qwen3_moe"}, "architecture 'qwen3_moe' is not supported; nearest: 'qwen3'"),
    ({"rope_scaling": {"type": "linear"}}, "rotary positions of type 'linear' are described wrongly"),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "positions of type 'yarn' are not supported"),
    ({"partial_rotary_factor": 0.5}, "heads that are turned in part only are not supported, got 0.5"),
    ({"model_type": "smollm3", "no_rope_layers": [1]}, "no_rope_layers must be 2 numbers, 0 or 1"),
    ({"model_type": "gemma3_text", "layer_types": ["x", "y"]}, "layer_types must be 2 of 'full_attention'"),
    ({"hidden_act": "mish"}, "activation 'mish' is not supported"),
    ({"num_hidden_layers": 3}, r"lacks 'model.layers.2.input_layernorm.weight' \(9 missing, 0 unknown\)"),
    ({"num_hidden_layers": 1}, r"has unknown 'model.layers.1.input_layernorm.weight' \(0 missing, 9 unknown\)"),
    ({"intermediate_size": 49}, r"tensor 'model.layers.0.mlp.gate_proj.weight' has shape \(48, 32\), .* \(49, 32\)"),
    ({"num_key_value_heads": 3}, "must be a multiple of num_key_value_heads, got 4 and 3"),
])  # fmt: skip
def test_folders_that_do_not_fit_are_named(change, says, tmp_path):
    save_pretrained(make("llama"), tmp_path)
    changed(tmp_path, **change)
    with pytest.raises(ModelFileError, match=says):
        from_pretrained(tmp_path)


CONFIGS = {
    "layers without end": ("llama", {"num_hidden_layers": 2**31}, "num_hidden_layers: .* less than or equal to 1024"),
    "no base": ("llama", {"rope_theta": 0}, "rope_theta: .* greater than 0"),
    "no base elsewhere": ("llama", {"rope_theta": None, "rope_parameters": {"rope_theta": -1}}, "rope_theta must be"),
    "a list as a type": ("llama", {"model_type": []}, "model_type: Input should be a valid string"),
    "a number as text": ("llama", {"hidden_size": "32"}, "hidden_size: Input should be a valid integer, got 32"),
    "truth as a number": ("llama", {"num_attention_heads": True}, "num_attention_heads: Input should be a valid int"),
    "a share beyond one": ("bert", {"hidden_dropout_prob": 2}, "hidden_dropout_prob: .* less than 1"),
    "an end that is text": ("llama", {"eos_token_id": "x"}, "eos_token_id: "),
    "wider than its weights": ("llama", {"vocab_size": 2**24}, "more weights than it stores"),
    "longer than its weights": ("gpt2", {"n_positions": 2**24}, "more weights than it stores"),
    "an activation of no kind": ("llama", {"hidden_act": ["silu"]}, "hidden_act: Input should be a valid string"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIGS)
def test_every_number_has_a_range_and_every_field_a_type(case, tmp_path):
    family, change, says = CONFIGS[case]
    save_pretrained(make(family) if family in FAMILIES else encoder(family), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ModelFileError, match=says):
        from_pretrained(tmp_path)


def test_folders_hold_files_not_pipes_and_devices(tmp_path):
    save_pretrained(make("llama"), tmp_path)
    for name in ("model.safetensors", "config.json"):
        kept = (tmp_path / name).read_bytes()
        (tmp_path / name).unlink()
        os.mkfifo(tmp_path / name)
        with pytest.raises(ModelFileError, match="must be a file, it is a pipe"):
            from_pretrained(tmp_path)
        (tmp_path / name).unlink()
        (tmp_path / name).symlink_to("/dev/zero")
        with pytest.raises(ModelFileError, match="must be a file, it is a device"):
            from_pretrained(tmp_path)
        (tmp_path / name).unlink()
        (tmp_path / name).write_bytes(kept)
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_act": "\\ud800"}')
    with pytest.raises(ModelFileError, match="surrogates not allowed"):
        from_pretrained(tmp_path)


def test_other_bad_folders(tmp_path):
    save_pretrained(make("llama"), tmp_path, shard_bytes=20_000)
    with pytest.raises(InputError, match="num_labels=2 is for encoders"):
        from_pretrained(tmp_path, num_labels=2)
    first = sorted(tmp_path.glob("*.safetensors"))[0]
    first.rename(tmp_path / "elsewhere")
    with pytest.raises(MissingFileError, match=first.name):
        from_pretrained(tmp_path)
    for file in [*tmp_path.glob("*.safetensors"), tmp_path / "model.safetensors.index.json"]:
        file.unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(ModelFileError, match="is a pickle, which runs code when it is read; convert it with safet"):
        from_pretrained(tmp_path)
    with pytest.raises(InputError, match="dtype must be float32, float16 or bfloat16, got 'int8'"):
        save_pretrained(make("llama"), tmp_path, dtype="int8")
    odd = tfopt.models.causal_lm(tfopt.models.CausalLMConfig(16, 8, 1, num_attention_heads=1, positions="learned"))
    with pytest.raises(InputError, match="no public checkpoint layout holds this mix"):
        save_pretrained(odd, tmp_path)


@pytest.mark.parametrize(("settings", "shape"), [
    ({"head": "tokens", "num_labels": 3}, (2, 10, 3)), ({"head": "masked_lm"}, (2, 10, 64)),
    ({"num_labels": 4, "pooling": "cls"}, (2, 4)),
])  # fmt: skip
def test_heads(settings, shape, keras, generation, tmp_path):
    model = encoder("bert", generation, **settings)
    ids = tokens(2, 10)
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    found = np.asarray(model(inputs))
    assert found.shape == shape
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(inputs, np.zeros(shape[:-1], np.int32), verbose=0)
    tfopt.models.save(model, tmp_path / "m.keras")
    again = tfopt.models.load(tmp_path / "m.keras")
    np.testing.assert_array_equal(np.asarray(again(inputs)), np.asarray(model(inputs)))


def test_embeddings_and_spans(generation, tmp_path):
    ids = tokens(2, 10)
    mask = np.ones_like(ids)
    mask[1, 6:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    pooled = np.asarray(encoder("bert", generation, head="embedding")(inputs)["sentence_embedding"])
    hidden = hidden_of(encoder("bert", generation), ids, mask)
    mean = np.stack([hidden[0].mean(0), hidden[1, :6].mean(0)])
    np.testing.assert_allclose(pooled, mean / np.linalg.norm(mean, axis=1, keepdims=True), atol=1e-5)
    model = encoder("bert", generation, head="span")
    inputs["token_type_ids"] = np.zeros_like(ids)
    spans = {name: np.asarray(value) for name, value in model(inputs).items()}
    assert set(spans) == {"start_logits", "end_logits"} and all(v.shape == (2, 10) for v in spans.values())
    assert all((v[1, 6:] < -9000).all() and (v[1, :6] > -100).all() for v in spans.values())
    assert tfopt.export(model, tmp_path / "m.tflite", format="tflite", lengths=[10]).max_abs_error < 1e-3
    with pytest.raises(InputError, match="num_labels=3 means nothing for head 'span'"):
        bert(ENCODERS["bert"], 3, head="span")
    with pytest.raises(InputError, match="head must be None or one of classification"):
        bert(ENCODERS["bert"], head="crf")
