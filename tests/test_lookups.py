"""Models that take texts: kept whole in SavedModels, cut behind their vocabulary in TFLite files, changed as others."""

import json

import numpy as np
import pytest
import tensorflow as tf

import tfopt
from tfopt._base.members import LOOKUPS
from tfopt._keras import keras_api
from tfopt.data.lookup import Lookup, from_json, to_json
from tfopt.errors import InputError, ModelFileError, VerificationError
from tfopt.export.lookups import check_cut, without_lookups

TEXTS = ["A good, good film!", "bad film", "", "the \u00c4rger of it's day", "unheard words; good", "a\tb\nc  d"]


def as_given(keras, texts):
    """As this generation declares texts: older ones want an axis."""
    return np.array(texts, object) if keras.__name__ == "keras" else np.array(texts, object)[:, None]


def vectorizer(keras, **settings):
    layer = keras.layers.TextVectorization(**{"max_tokens": 40, "output_sequence_length": 6, **settings})
    layer.adapt(np.array(TEXTS[:4] * 3))
    return layer


def classifier(keras, **settings):
    """Weights are far from those that begin, so that words count."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input(() if keras.__name__ == "keras" else (1,), dtype="string", name="text")
    x = keras.layers.Embedding(40, 32)(vectorizer(keras, **settings)(inputs))
    x = keras.layers.Dense(64, activation="relu")(keras.layers.GlobalAveragePooling1D()(x))
    model = keras.Model(inputs, keras.layers.Dense(3, name="logits")(x))
    rng = np.random.default_rng(0)
    for weight in model.trainable_weights:
        weight.assign(
            keras_api.to_numpy(weight) + 0.3 * rng.standard_normal(tuple(weight.shape)).astype(np.float32)
        )
    return model


def answers(keras, model, texts=TEXTS):
    return np.asarray(model(tf.constant(as_given(keras, texts).astype(str))))


@pytest.mark.parametrize(
    "settings",
    [{}, {"standardize": None}, {"standardize": "lower"}, {"standardize": "strip_punctuation"}, {"split": "character"},
     {"output_sequence_length": None}],
    ids=str,
)  # fmt: skip
def test_words_are_those_of_keras(keras, settings):
    layer = vectorizer(keras, **settings)
    inputs = keras.Input((), dtype="string", name="text")
    model = keras.Model(inputs, keras.layers.Embedding(60, 4)(layer(inputs)))
    (lookup,) = without_lookups(model).lookups
    np.testing.assert_array_equal(lookup.ids(TEXTS), np.asarray(layer(tf.constant(TEXTS))))
    assert from_json(to_json([lookup]), "x") == [lookup]


@pytest.mark.parametrize("settings", [{}, {"mask_token": ""}, {"num_oov_indices": 0}], ids=str)
def test_single_words_and_numbers_are_those_of_keras(keras, settings):
    layer = keras.layers.StringLookup(vocabulary=["red", "green"], **settings)
    inputs = keras.Input((2,), dtype="string", name="color")
    (lookup,) = without_lookups(keras.Model(inputs, keras.layers.Embedding(5, 4)(layer(inputs)))).lookups
    known = [["red", "green"], ["green", "red"]]
    np.testing.assert_array_equal(lookup.ids(known), np.asarray(layer(tf.constant(known))))
    if "num_oov_indices" in settings:
        with pytest.raises(InputError, match="'blue' is not in .* vocabulary, which has no place for others"):
            lookup.ids([["blue"]])
    else:
        np.testing.assert_array_equal(lookup.ids([["blue"]]), np.asarray(layer(tf.constant([["blue"]]))))
    numbers = keras.layers.IntegerLookup(vocabulary=[5, 70])
    inputs = keras.Input((1,), dtype="int64", name="number")
    (lookup,) = without_lookups(keras.Model(inputs, keras.layers.Embedding(5, 4)(numbers(inputs)))).lookups
    given = np.array([[5], [70], [6]])
    np.testing.assert_array_equal(lookup.ids(given), np.asarray(numbers(given)))
    with pytest.raises(InputError, match="input 'number' takes integers, got"):
        lookup.ids([["5"]])


def test_a_saved_model_takes_texts(keras, tmp_path):
    model = classifier(keras)
    artifact = tfopt.export(model, tmp_path / "folder")
    found = tfopt.Predictor.load(artifact.path).predict(TEXTS)["logits"]
    np.testing.assert_allclose(found, answers(keras, model), atol=1e-5)


@pytest.mark.parametrize("quantization", [None, "float16", "dynamic_int8", "int8"])
def test_a_tflite_file_takes_texts(keras, tmp_path, quantization):
    model = classifier(keras)
    given = {"representative": {"text": as_given(keras, TEXTS)}} if quantization == "int8" else {}
    artifact = tfopt.export(model, tmp_path / "m.tflite", quantization=quantization, **given)
    assert artifact.checks[0].name == "lookup"
    predictor, want = tfopt.Predictor.load(artifact.path), answers(keras, model)
    for inputs in (TEXTS, {"text": as_given(keras, TEXTS)}):
        found = predictor.predict(inputs)["logits"]
        assert (
            np.abs(found - want).max() < {None: 1e-5, "float16": 1e-2}.get(quantization, 0.1) * np.abs(want).max()
        )
    ids = json.loads(predictor.members[LOOKUPS])["lookups"][0]["vocabulary"]
    assert "good" in ids and "[UNK]" not in ids


def test_texts_beside_other_inputs(keras, tmp_path):
    color = keras.Input((1,), dtype="string", name="color")
    number = keras.Input((3,), name="number")
    x = keras.layers.Embedding(4, 8)(keras.layers.StringLookup(vocabulary=["red", "green"])(color))
    joined = keras.layers.Concatenate()([keras.layers.Flatten()(x), number])
    model = keras.Model({"color": color, "number": number}, keras.layers.Dense(2, name="y")(joined))
    given = {"color": np.array([["red"], ["blue"]], object), "number": np.ones((2, 3), np.float32)}
    predictor = tfopt.Predictor.load(tfopt.export(model, tmp_path / "m.tflite").path)
    want = model({"color": tf.constant(given["color"].astype(str)), "number": tf.constant(given["number"])})
    np.testing.assert_allclose(predictor.predict(given)["y"], np.asarray(want), atol=1e-6)
    with pytest.raises(InputError, match="takes its inputs by name, color among them"):
        predictor.predict(["red"])


def test_everything_else_works_beside_a_vocabulary(keras, tmp_path):
    model = classifier(keras)
    assert tfopt.inspect(model).parameters > 1000
    small = tfopt.shrink(model, neurons=0.5)
    assert answers(keras, small).shape == answers(keras, model).shape
    np.testing.assert_allclose(answers(keras, tfopt.factorize(model, energy=0.99)), answers(keras, model), atol=1.0)
    loaded = tfopt.models.load(tfopt.models.save(model, tmp_path / "m.keras"))
    np.testing.assert_allclose(answers(keras, loaded), answers(keras, model), atol=1e-6)
    tfopt.prune(model, 0.5)
    tfopt.quantize_aware(model)
    tfopt.finish(model)
    tfopt.export(model, tmp_path / "m.tflite", quantization="trained")


def test_what_cannot_be_cut_says_why(keras, tmp_path):
    def bag(**settings):
        inputs = keras.Input((), dtype="string", name="text")
        layer = keras.layers.TextVectorization(max_tokens=40, **settings)
        layer.adapt(np.array(TEXTS))
        return keras.Model(inputs, keras.layers.Dense(2)(layer(inputs)))

    with pytest.raises(InputError, match=r"TextVectorization '.*' with output_mode='multi_hot' cannot be cut off"):
        tfopt.export(bag(output_mode="multi_hot", pad_to_max_tokens=True), tmp_path / "m.tflite")
    inputs = keras.Input((1,), dtype="string", name="text")
    ids = keras.layers.StringLookup(vocabulary=["a"])(inputs)
    other = keras.layers.StringLookup(vocabulary=["b"])(inputs)
    both = keras.layers.Concatenate()([keras.layers.Embedding(3, 4)(i) for i in (ids, other)])
    with pytest.raises(InputError, match="input 'text' is read by 2 layers"):
        tfopt.export(keras.Model(inputs, keras.layers.Dense(2)(both)), tmp_path / "m.tflite")
    assert not (tmp_path / "m.tflite").exists()


def test_a_vocabulary_that_is_not_the_models_is_seen(keras):
    model = classifier(keras)
    cut = without_lookups(model)
    (right,) = cut.lookups
    wrong = dict(zip(right.vocabulary, np.roll(list(right.vocabulary.values()), 1).tolist(), strict=True))
    cut.lookups[:] = [Lookup(**{**vars(right), "vocabulary": wrong})]
    with pytest.raises(VerificationError, match="'lookup' failed: output 'logits' differs by"):
        check_cut(model, cut)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocabulary": {"a": -1}}, "bad vocabulary"), ({"length": 0}, "bad length"), ({"split": "eval"}, "bad split"),
        ({"standardize": 3}, "bad standardize"), ({"unknown": "x"}, "bad unknown"), ({"more": 1}, "bad key"),
    ],
)  # fmt: skip
def test_damaged_vocabularies(change, message):
    good = {"name": "text", "target": "ids", "vocabulary": {"a": 0}}
    content = json.dumps({"schema": 1, "lookups": [{**good, **change}]}).encode()
    with pytest.raises(ModelFileError, match=message):
        from_json(content, "m.tflite")
    for other in (b"[]", b'{"schema": 2}', b'{"schema": 1, "lookups": []}', b"{"):
        with pytest.raises(ModelFileError):
            from_json(other, "m.tflite")
