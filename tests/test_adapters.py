"""Several adapters for one base: taken out of a training, kept as files, changed while the model is in use."""

import numpy as np
import pytest
import safetensors.numpy

import tfopt
from tfopt._keras import keras_api
from tfopt.compress import lora
from tfopt.compress.adapters import Adapter, Adapters
from tfopt.errors import InputError, MissingFileError, ModelFileError
from tfopt.models import CausalLMConfig, causal_lm

CONFIG = lora.LoraConfig(rank=2, alpha=4.0, whole=["logits"])


def values(model):
    return {w.path: keras_api.to_numpy(w.variable).copy() for w in keras_api.weights(model)}


def trained(model, keras, tokens, labels):
    """The adapter of one task, and what the model answers with it."""
    lora.prepare(model, CONFIG)
    model.compile(keras.optimizers.Adam(1e-2), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(tokens, labels, batch_size=8, epochs=2, verbose=0)
    answers = model.predict(tokens, verbose=0)
    return lora.take(model), answers


@pytest.fixture
def two(make_bert, keras, tokens):
    """A base, two adapters of it, and the answers of all three."""
    model = make_bert()
    before, untouched = values(model), model.predict(tokens, verbose=0)
    found = {name: trained(model, keras, tokens, labels) for name, labels in
             {"one": np.arange(16) % 3, "other": np.arange(16)[::-1] % 2}.items()}  # fmt: skip
    after = values(model)
    assert before.keys() == after.keys() and all(np.array_equal(after[n], v) for n, v in before.items())
    assert all(layer.trainable for _, layer in keras_api.walk(model))
    return model, {n: a for n, (a, _) in found.items()}, {None: untouched, **{n: y for n, (_, y) in found.items()}}


def test_one_base_changes_between_adapters(two, tokens, tmp_path):
    model, kept, answers = two
    before = values(model)
    files = {name: adapter.save(tmp_path / f"{name}.safetensors") for name, adapter in kept.items()}
    assert np.abs(answers["one"] - answers["other"]).max() > 0.05 < np.abs(answers["one"] - answers[None]).max()
    adapters = Adapters(model, files)
    predict = model.predict  # one compiled function for all of them
    for name in ("one", "other", None, "other", "one", None):
        changed = adapters.use(name)
        assert adapters.active == name and set(changed) == {*kept["one"].factors, "logits/kernel", "logits/bias"}
        np.testing.assert_allclose(predict(tokens, verbose=0), answers[name], atol=2e-6)
    assert all(np.array_equal(values(model)[n], v) for n, v in before.items())  # whatever was used in between


def test_files_that_are_no_adapters(two, make_bert, tmp_path):
    model, kept, _ = two
    path = kept["one"].save(tmp_path / "a.safetensors")
    loaded = Adapter.load(path)
    assert loaded.scale == kept["one"].scale == 2.0 and loaded.factors.keys() == kept["one"].factors.keys()
    for name, pair in kept["one"].factors.items():
        assert all(np.array_equal(a, b) for a, b in zip(pair, loaded.factors[name], strict=True))
    whole = path.read_bytes()
    for damaged in (whole[:-7], whole[: len(whole) // 3], whole[:5], b"", b"\xff" * 64):
        path.write_bytes(damaged)
        with pytest.raises(ModelFileError, match="not an adapter, or a damaged one"):
            Adapter.load(path)
    path.write_bytes(safetensors.numpy.save({"x": np.zeros(2)}))
    with pytest.raises(ModelFileError, match="no adapter that tfopt wrote"):
        Adapter.load(path)
    facts = {"format": "tfopt.adapter", "scale": "1.0"}
    path.write_bytes(safetensors.numpy.save({"x.low": np.zeros((2, 1))}, facts))
    with pytest.raises(ModelFileError, match="a damaged adapter"):
        Adapter.load(path)
    with pytest.raises(MissingFileError):
        Adapter.load(tmp_path / "none")
    other = make_bert(num_labels=5)
    with pytest.raises(InputError, match=r"of another model: weight 'logits/kernel' has the shape \(32, 5\) here"):
        Adapters(other, {"one": kept["one"]})
    with pytest.raises(InputError, match="this one has no weight 'x/kernel'"):
        Adapters(model, {"x": Adapter({"x/kernel": (np.zeros((2, 1)), np.zeros((1, 2)))}, scale=1.0)})
    for scale, value in ((np.inf, 1.0), (1.0, np.nan), (3e38, 1e10)):
        with pytest.raises(InputError, match="finite number|NaN or infinite"), np.errstate(over="ignore"):
            Adapter({"a/kernel": (np.full((2, 1), value, np.float32), np.ones((1, 2), np.float32))}, scale=scale)
    adapters = Adapters(model, kept)
    with pytest.raises(InputError, match="no adapter 'third'; there are one, other"):
        adapters.use("third")
    adapters.use("one")
    with pytest.raises(InputError, match="'one' is in use"):
        adapters.add("one", kept["one"])
    with pytest.raises(InputError, match="no adapters; call prepare"):
        lora.take(model)


@pytest.mark.parametrize(
    "settings", [{"runtime": "eager"}, {"runtime": "xla"}, {"runtime": "xla", "bits": 8}], ids=str
)
def test_a_generator_goes_on_with_another_adapter(generation, settings):
    """What it then says is what a generator says that was made of the model with that adapter."""
    keras_api.keras_module(generation).utils.set_random_seed(2)
    config = CausalLMConfig(vocab_size=90, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                            intermediate_size=64, max_position_embeddings=48)  # fmt: skip
    model, rng = causal_lm(config, generation), np.random.default_rng(3)
    factors = {
        w.path: (rng.normal(0, 0.3, (w.variable.shape[0], 2)), rng.normal(0, 0.3, (2, w.variable.shape[1])))
        for w in keras_api.weights(model) if w.path.endswith("value/kernel") or "down" in w.path
    }  # fmt: skip
    adapters = Adapters(model, {"loud": Adapter(factors, scale=1.0)})
    generator = tfopt.Generator.load(model, **settings)
    asked, how = [3, 5, 7, 11], tfopt.GenerateConfig(max_tokens=12)
    quiet = generator.generate([asked], how)[0].tokens
    generator.swap(adapters.use("loud"))
    loud = generator.generate([asked], how)[0].tokens
    assert loud != quiet and loud == tfopt.Generator.load(model, **settings).generate([asked], how)[0].tokens
    generator.swap(adapters.use(None))
    assert generator.generate([asked], how)[0].tokens == quiet
    with pytest.raises(InputError, match="no weight 'x'"):
        generator.swap({"x": np.zeros(3)})


def test_a_file_cannot_be_swapped(generation, tmp_path):
    config = CausalLMConfig(vocab_size=90, hidden_size=32, num_hidden_layers=1, num_attention_heads=4,
                            intermediate_size=64, max_position_embeddings=32)  # fmt: skip
    path = tfopt.export(causal_lm(config, generation), tmp_path / "m.tflite", lengths=[32]).path
    with pytest.raises(InputError, match="has its weights from a file"):
        tfopt.Generator.load(path).swap({})


def test_a_model_of_kerashub(tmp_path):
    """Its attention is an EinsumDense inside a layer: kernels with three axes."""
    keras_hub = pytest.importorskip("keras_hub")
    model = keras_hub.models.BertBackbone(
        vocabulary_size=90, num_layers=1, num_heads=2, hidden_dim=16, intermediate_dim=32, max_sequence_length=24
    )
    ids = np.random.default_rng(0).integers(1, 90, (16, 10)).astype(np.int32)
    inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids), "segment_ids": np.zeros_like(ids)}

    def answers():
        return model.predict(inputs, verbose=0)["pooled_output"]

    before = answers()
    lora.prepare(model, lora.LoraConfig(rank=2))
    model.compile("adam", loss={"pooled_output": "mse", "sequence_output": None})
    model.fit(inputs, {"pooled_output": np.ones_like(before)}, epochs=3, verbose=0)
    trained = answers()
    path = lora.take(model).save(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(answers(), before)
    adapters = Adapters(model, {"one": path})
    assert any("query" in name for name in adapters.use("one"))
    np.testing.assert_allclose(answers(), trained, atol=2e-6)
    assert np.abs(trained - before).max() > 1e-3
    adapters.use(None)
    np.testing.assert_array_equal(answers(), before)
