"""ModernBERT and EmbeddingGemma against what transformers and sentence-transformers compute.

Made by `python -m benchmarks.golden_encoders`.
"""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

import tfopt
from tfopt.errors import InputError, ModelFileError
from tfopt.models import RotaryEncoderConfig, encoder, from_pretrained, save_pretrained
from tfopt.models.encoder import encoder_config

from .conftest import REPOSITORY
from .decoders import FAMILIES

FOLDER = REPOSITORY / "tests" / "data" / "tiny_encoders"
# Folder -> the head that is read, and what the references gave of it.
HEADS = {
    "modernbert_cls": ("stored", "logits"), "modernbert_mean": ("stored", "logits"),
    "modernbert_words": ("masked_lm", "logits"), "embedding_gemma": ("embedding", "vector"),
}  # fmt: skip


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(FOLDER / "golden.npz"))


def given(golden):
    return {name: golden[name] for name in ("input_ids", "attention_mask")}


def answer(model, inputs):
    found = model(inputs, training=False)
    return np.asarray(next(iter(found.values())) if isinstance(found, dict) else found)


def compare(found, golden, name, part, atol=2e-5):
    keep = golden["attention_mask"].astype(bool) if found.ndim == 3 else slice(None)
    np.testing.assert_allclose(found[keep], golden[f"{name}_{part}"][keep], atol=atol)


@pytest.mark.parametrize("name", HEADS)
def test_heads_answer_as_the_references_do(golden, generation, name):
    head, part = HEADS[name]
    model = from_pretrained(FOLDER / name, generation, head=head)
    compare(answer(model, given(golden)), golden, name, part)


@pytest.mark.parametrize("name", ["modernbert_cls", "modernbert_mean", "embedding_gemma"])
def test_hidden_states_are_those_of_the_references(golden, generation, name):
    compare(answer(from_pretrained(FOLDER / name, generation), given(golden)), golden, name, "hidden")


@pytest.mark.parametrize(("name", "field", "value"), [
    ("modernbert_cls", "local_attention", 10), ("modernbert_cls", "local_rope_theta", 20_000.0),
    ("modernbert_mean", "classifier_pooling", "cls"), ("embedding_gemma", "sliding_window", 6),
    ("embedding_gemma", "use_bidirectional_attention", False),
])  # fmt: skip
def test_another_configuration_answers_otherwise(golden, tmp_path, name, field, value):
    """What the golden values would let pass, nothing here would see."""
    shutil.copytree(FOLDER / name, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text()) | {field: value}
    if "theta" in field:
        config["rope_parameters"]["sliding_attention"]["rope_theta"] = value
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    head, part = HEADS[name]
    try:
        model = from_pretrained(tmp_path / "m", head=head)
    except (ModelFileError, InputError):
        assert field.startswith("use")  # a decoder, whose tensors are named otherwise
        return
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        compare(answer(model, given(golden)), golden, name, part)


@pytest.mark.parametrize("name", HEADS)
def test_folders_come_back_as_they_were_read(generation, tmp_path, name):
    model = from_pretrained(FOLDER / name, generation, head=HEADS[name][0])
    save_pretrained(model, tmp_path / "m", dtype="float16")
    for file in sorted(FOLDER.glob(f"{name}/**/model.safetensors")):
        ours, theirs = load_file(tmp_path / "m" / file.relative_to(FOLDER / name)), load_file(file)
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            # A norm's scale less one has bits that the whole of it has not.
            np.testing.assert_allclose(ours[key], value, atol=5e-4 if name == "embedding_gemma" else 0)
    ours, theirs = (json.loads((d / "config.json").read_text()) for d in (tmp_path / "m", FOLDER / name))
    assert (
        ours["architectures"] == theirs["architectures"] if "architectures" in ours else name == "embedding_gemma"
    )
    config, head, pooling = encoder_config(from_pretrained(tmp_path / "m", head=HEADS[name][0]))
    assert (config, head, pooling) == encoder_config(model)


@pytest.mark.parametrize("name", ["modernbert_cls", "embedding_gemma"])
def test_files_answer_as_the_references_do(golden, tmp_path, name):
    head, part = HEADS[name]
    model, inputs = from_pretrained(FOLDER / name, head=head), given(golden)
    for kind, limit in ((None, 2e-5), ("dynamic_int8", 0.1)):
        path = tmp_path / f"{kind}.tflite"
        tfopt.export(model, path, quantization=kind, lengths=[20], representative=inputs)
        found = next(iter(tfopt.Predictor.load(path).predict(inputs).values()))
        compare(found, golden, name, part, atol=limit * np.abs(golden[f"{name}_{part}"]).max())


def test_smaller_ones_keep_their_shape(generation, golden, tmp_path):
    model = from_pretrained(FOLDER / "modernbert_cls", generation, head="stored")
    smaller = tfopt.shrink(model, layers=[0, 2], heads=0.5, neurons=0.5)
    config, head, pooling = encoder_config(smaller)
    assert (config.network.num_hidden_layers, config.network.intermediate_size) == (3, 10)
    assert config.first_norm and (head, pooling) == ("classification", "pooler")
    assert config.network.full_layers == (1,)  # what was the fourth
    tfopt.models.save(smaller, tmp_path / "m.keras")
    again = tfopt.models.load(tmp_path / "m.keras")
    assert encoder_config(again)[0] == config
    np.testing.assert_allclose(answer(again, given(golden)), answer(smaller, given(golden)), atol=1e-6)


def test_what_an_encoder_is_stays_true(tmp_path):
    model = from_pretrained(FOLDER / "embedding_gemma", head="embedding")
    assert encoder_config(tfopt.shrink(model, neurons=0.5))[0].embedding_widths == (12, 16)
    uneven = tfopt.shrink(from_pretrained(FOLDER / "modernbert_cls", head="stored"), neurons={"layer_0_gate": 0.5})
    with pytest.raises(InputError, match="its layers are not alike"):
        encoder_config(uneven)
    first = encoder(encoder_config(model)[0], head="embedding", pooling="cls")
    save_pretrained(first, tmp_path / "cls")
    with pytest.raises(ModelFileError, match="says pooling 'cls'"):
        from_pretrained(tmp_path / "cls", head="embedding")
    assert encoder_config(from_pretrained(tmp_path / "cls", head="embedding", pooling="cls"))[2] == "cls"
    save_pretrained(encoder(encoder_config(model)[0]), tmp_path / "plain")  # without the head, without its layers
    assert not (tmp_path / "plain" / "modules.json").exists()


def test_norms_of_others_keep_their_names():
    """Of Keras's own only, the scale is called as other norms call it."""
    import keras

    from tfopt._keras import keras_api

    class RMSNormalization(keras.layers.Layer):
        def build(self, shape):
            self.scale, self.bias = (self.add_weight(shape=(4,), name=name) for name in ("scale", "bias"))

        def call(self, x):
            return x * self.scale + self.bias

    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.RMSNormalization()(RMSNormalization()(inputs)))
    assert [w.name for w in keras_api.weights(model)] == ["scale", "bias", "gamma"]


def test_what_is_not_known_is_refused(tmp_path):
    network = FAMILIES["llama"]
    with pytest.raises(InputError, match="no pooler"):
        encoder(RotaryEncoderConfig(network), 3, pooling="pooler")
    with pytest.raises(InputError, match="must be 'rotary'"):
        RotaryEncoderConfig(FAMILIES["gpt2"])
    with pytest.raises(InputError, match="no public checkpoint layout holds"):
        save_pretrained(encoder(RotaryEncoderConfig(network)), tmp_path / "none")
    with pytest.raises(InputError, match="must be a BertConfig or a RotaryEncoderConfig, got CausalLMConfig"):
        encoder(network)


@pytest.mark.parametrize(("name", "file", "change", "says"), [
    ("modernbert_cls", "config.json", {"attention_bias": True}, "attention_bias is not supported"),
    ("modernbert_cls", "config.json", {"classifier_pooling": "max"}, "must be one of cls, mean"),
    ("modernbert_cls", "config.json", {"layer_types": ["full_attention"]}, "layer_types must be 5 of"),
    ("embedding_gemma", "2_Dense/config.json", {"use_residual": True}, "without bias, activation and residual"),
    ("embedding_gemma", "2_Dense/config.json", {"out_features": 2**40}, "out_features must be from 1 to"),
    ("embedding_gemma", "3_Dense/config.json", {"out_features": 20}, "has shape"),
    ("embedding_gemma", "1_Pooling/config.json", {"pooling_mode": "max"}, "must be one of 'mean', 'cls', got max"),
    ("embedding_gemma", "1_Pooling/config.json", {"pooling_mode": "cls"}, "says pooling 'cls', and 'mean' was"),
    ("embedding_gemma", "modules.json", [{"path": "..", "type": "a.Dense"}], "leads out of its folder"),
    ("embedding_gemma", "modules.json", [{"path": 3, "type": "a.Dense"}], "each with a path and a type"),
    ("embedding_gemma", "1_Pooling/config.json", [], "must be one of 'mean', 'cls', got None"),
    ("embedding_gemma", "modules.json", [{"path": "x", "type": "a.LSTM"}], "'a.LSTM' is not supported"),
    ("embedding_gemma", "modules.json", {"a": 1}, "must list modules"),
])  # fmt: skip
def test_folders_that_are_not_understood(tmp_path, name, file, change, says):
    shutil.copytree(FOLDER / name, tmp_path / "m")
    path = tmp_path / "m" / file
    content = json.loads(path.read_text())
    path.write_text(
        json.dumps(content | change if isinstance(change, dict) and isinstance(content, dict) else change)
    )
    with pytest.raises(ModelFileError, match=says):
        from_pretrained(tmp_path / "m", head=HEADS[name][0])
