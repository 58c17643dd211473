import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tfopt
from tfopt._keras import extras, keras_api
from tfopt._keras.loading import load_model
from tfopt.errors import InputError, MissingFileError, ModelFileError
from tfopt.models import BertConfig, CausalLMConfig, Seq2SeqConfig, bert, causal_lm, from_pretrained, seq2seq

CONFIG = BertConfig(
    50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, max_position_embeddings=12
)


def test_minilm_equals_the_reference(generation, minilm_folder, shared_data):
    golden = np.load(shared_data / "minilm_golden.npz")
    model = from_pretrained(minilm_folder, generation)
    inputs = {name: golden[name].astype(np.int32) for name in ("input_ids", "attention_mask")}
    hidden = np.asarray(model(inputs)["last_hidden_state"])
    np.testing.assert_allclose(hidden, golden["last_hidden_state"], atol=2e-5)
    mask = golden["attention_mask"][:, :, None]
    pooled = (hidden * mask).sum(1) / mask.sum(1)
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    np.testing.assert_allclose(pooled, golden["sentence_embedding"], atol=2e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_padding_changes_nothing_and_a_file_keeps_everything(generation, pooling, tmp_path):
    model = bert(CONFIG, 3, pooling=pooling, generation=generation)
    ids = np.array([[5, 6, 7, 8]], np.int32)
    short = np.asarray(model({"input_ids": ids, "attention_mask": np.ones_like(ids)}))
    wide = {
        "input_ids": np.pad(ids, ((0, 0), (0, 5))),
        "attention_mask": np.pad(np.ones_like(ids), ((0, 0), (0, 5))),
    }
    np.testing.assert_allclose(np.asarray(model(wide)), short, atol=1e-5)
    loaded = load_model(keras_api.save_model(model, tmp_path / "m.keras"))
    np.testing.assert_array_equal(np.asarray(loaded(wide)), np.asarray(model(wide)))


def test_layers_of_a_kind_start_differently(generation):
    kernels = [
        keras_api.to_numpy(w.variable)
        for w in keras_api.weights(bert(CONFIG, generation=generation))
        if w.path.endswith(("query/kernel", "key/kernel"))
    ]
    assert len({k.tobytes() for k in kernels}) == 4


@pytest.fixture
def folder(tmp_path):
    """A Hugging Face folder of a tiny BERT with random weights."""
    rng = np.random.default_rng(0)
    h, f = CONFIG.hidden_size, CONFIG.intermediate_size
    tensors = {
        "embeddings.word_embeddings.weight": (50, h), "embeddings.token_type_embeddings.weight": (2, h),
        "embeddings.position_embeddings.weight": (12, h), "embeddings.LayerNorm.weight": (h,),
        "embeddings.LayerNorm.bias": (h,),
    }  # fmt: skip
    for i in range(2):
        layer = f"encoder.layer.{i}"
        for part, shape in (
            ("attention.self.query", (h, h)), ("attention.self.key", (h, h)), ("attention.self.value", (h, h)),
            ("attention.output.dense", (h, h)), ("intermediate.dense", (f, h)), ("output.dense", (h, f)),
        ):  # fmt: skip
            tensors |= {f"{layer}.{part}.weight": shape, f"{layer}.{part}.bias": shape[:1]}
        for part in ("attention.output.LayerNorm", "output.LayerNorm"):
            tensors |= {f"{layer}.{part}.weight": (h,), f"{layer}.{part}.bias": (h,)}
    values = {f"bert.{n}": rng.standard_normal(s).astype(np.float32) for n, s in tensors.items()}
    values["bert.pooler.dense.weight"] = np.zeros((h, h), np.float32)
    save_file(values, tmp_path / "model.safetensors")
    config = {
        "model_type": "bert", "vocab_size": 50, "hidden_size": h, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": f, "max_position_embeddings": 12, "type_vocab_size": 2, "architectures": ["BertModel"],
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_weights_go_where_they_belong(folder, generation):
    model = from_pretrained(folder, generation, num_labels=2)
    stored = load_file(folder / "model.safetensors")
    found = {w.path: keras_api.to_numpy(w.variable) for w in keras_api.weights(model)}
    kernel = stored["bert.encoder.layer.1.intermediate.dense.weight"]
    np.testing.assert_array_equal(found["layer_1_intermediate/kernel"], kernel.T)
    assert found["logits/kernel"].shape == (16, 2)


def change(folder, name, value):
    tensors = load_file(folder / "model.safetensors")
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    save_file(tensors, folder / "model.safetensors")


def test_wrong_tensors_are_named(folder):
    name = "bert.encoder.layer.1.output.dense.bias"
    change(folder, name, np.zeros(5, np.float32))
    with pytest.raises(ModelFileError, match=r"layer.1.output.dense.bias' has shape \(5,\)"):
        from_pretrained(folder)
    change(folder, name, None)
    with pytest.raises(ModelFileError, match=r"lacks 'encoder.layer.1.output.dense.bias' \(1 missing, 0 unknown\)"):
        from_pretrained(folder)
    change(folder, "bert.encoder.layer.2.extra", np.zeros(1, np.float32))
    with pytest.raises(ModelFileError, match="and has unknown 'encoder.layer.2.extra'"):
        from_pretrained(folder)


def test_wrong_files_are_explained(folder):
    (folder / "model.safetensors").write_bytes(b"hello")
    with pytest.raises(ModelFileError, match="no readable safetensors file"):
        from_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(ModelFileError, match="architecture 'mamba' is not supported"):
        from_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelFileError, match="is not JSON"):
        from_pretrained(folder)
    with pytest.raises(MissingFileError, match="model folder not found"):
        from_pretrained(folder / "none")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"num_labels": 1}, "num_labels must be 2 or more for head 'classification', got 1"),
        (
            {"num_labels": 2, "pooling": "max"},
            "pooling must be one of 'mean', 'cls', 'pooler', 'mean_pooler', got 'max'",
        ),
        ({"generation": "torch"}, "generation must be"),
    ],
)
def test_bad_arguments(arguments, says):
    with pytest.raises(InputError, match=says):
        bert(CONFIG, **arguments)


def test_bad_shapes():
    with pytest.raises(InputError, match="multiple of num_attention_heads, got 10 and 4"):
        BertConfig(50, hidden_size=10, num_attention_heads=4)
    with pytest.raises(InputError, match="num_hidden_layers must be 1 or more, got 0"):
        BertConfig(50, num_hidden_layers=0)


def every_builder(generation):
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    for tied in (True, False):
        yield causal_lm(
            CausalLMConfig(50, **shape, max_position_embeddings=32, tie_word_embeddings=tied, end_tokens=(3,)),
            generation=generation,
        )
    for head in ({}, {"num_labels": 3}, {"head": "span"}, {"heads": {"a": 2, "b": 3}}):
        yield bert(BertConfig(50, **shape, max_position_embeddings=32), **head, generation=generation)


def test_what_a_model_is_survives_saving_by_any_hand(keras, generation, tmp_path):
    """Keras knows nothing of what our builders attach, and its own files once lost it without a word."""
    for model in every_builder(generation):
        expected = extras.of(model)
        model.save(tmp_path / "by_keras.keras")
        files = [tmp_path / "by_keras.keras"]
        if generation == "tf_keras":  # Keras 3 does not load its own HDF5 files with operations in them
            model.save(tmp_path / "by_keras.h5")
            files.append(tmp_path / "by_keras.h5")
        again = [keras.models.load_model(path, compile=False) for path in files]
        again += [load_model(path) for path in files]
        again += [keras.models.clone_model(model), keras.models.model_from_json(model.to_json())]
        for other in again:
            assert extras.of(other) == expected and expected
            keras_api.save_model(other, tmp_path / "ours.keras")
            assert extras.of(load_model(tmp_path / "ours.keras")) == expected


def test_a_model_that_keras_saved_still_generates(generation, tmp_path):
    model = next(every_builder(generation))
    model.save(tmp_path / "m.keras")
    artifact = tfopt.export(load_model(tmp_path / "m.keras"), tmp_path / "m.tflite", lengths=[16])
    prompt, config = [[4, 9, 7]], tfopt.GenerateConfig(max_tokens=6)
    expected = tfopt.Generator.load(model).generate(prompt, config)[0].tokens
    assert tfopt.Generator.load(artifact.path).generate(prompt, config)[0].tokens == expected


def test_what_was_built_upon_a_model_is_no_longer_it(keras, generation):
    for model in every_builder(generation):
        first = next(iter(model.output.values())) if isinstance(model.output, dict) else model.output
        grown = keras.Model(model.inputs, keras.layers.Activation("relu", name="grown")(first))
        part = keras.Model(model.inputs, model.get_layer(extras.CARRIER).output)
        assert extras.of(grown) == extras.of(part) == {}
    cut = tfopt.shrink(next(every_builder(generation)), neurons=0.5)
    assert json.loads(extras.of(cut)[extras.CONFIG])["intermediate_size"] == 16
    assert extras.of(keras.models.clone_model(cut)) == extras.of(cut)


def test_the_folder_of_llama2c_as_any_other(generation, shared_data):
    model = from_pretrained(shared_data / "tinystories260k", generation)
    assert extras.TOKENIZERS[1] in extras.of(model) and extras.CONFIG in extras.of(model)
    with pytest.raises(InputError, match="labels and heads are for encoders"):
        from_pretrained(shared_data / "tinystories260k", generation, num_labels=2)


def test_the_name_of_a_repository_says_how_to_fetch_it():
    with pytest.raises(
        MissingFileError, match="hf download sentence-transformers/all-MiniLM-L6-v2 --local-dir all-M"
    ):
        from_pretrained("sentence-transformers/all-MiniLM-L6-v2")


TRAINED = {
    "causal": lambda g: causal_lm(
        CausalLMConfig(40, 16, 1, 2, intermediate_size=24, max_position_embeddings=12, query_key_norm=True), g
    ),
    "masked_lm": lambda g: bert(dataclasses.replace(CONFIG, hidden_dropout_prob=0.0), generation=g, head="masked_lm"),
    "t5": lambda g: seq2seq(Seq2SeqConfig(40, 16, 1, 1, 2, intermediate_size=24, max_position_embeddings=12), g),
    "marian": lambda g: seq2seq(
        Seq2SeqConfig(40, 16, 1, 1, 2, intermediate_size=24, max_position_embeddings=12, positions="sinusoidal",
                      norm="layer", norm_first=False, bias=True, logits_bias=True), g
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", TRAINED)
def test_it_is_trained_as_it_is_run(kind, generation):
    """Keras 3 let norms without statistics take those of each batch, whatever their calls had said."""
    model, keras = TRAINED[kind](generation), keras_api.keras_module(generation)
    ids = np.random.default_rng(0).integers(2, 40, (32, 10)).astype(np.int32)
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    inputs |= {"decoder_input_ids": ids} if kind in ("t5", "marian") else {}
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.0), loss)
    for _ in range(2):
        for weight in keras_api.weights(model):
            if not weight.name.startswith("moving_"):
                weight.variable.assign(np.random.default_rng(1).normal(0.5, 0.3, weight.variable.shape))
        before = np.asarray(model(inputs, training=False))
        np.testing.assert_allclose(np.asarray(model(inputs, training=True)), before, atol=1e-5)
        model.fit(inputs, ids, epochs=1, verbose=0)
        np.testing.assert_allclose(np.asarray(model(inputs, training=False)), before, atol=1e-5)
