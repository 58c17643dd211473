"""Models that take texts: kept whole in SavedModels, cut behind their vocabulary in TFLite files, changed as others."""

import json

import numpy as np
import pytest
import tensorflow as tf

import tfopt
from tfopt._base.members import LOOKUPS
from tfopt._keras import keras_api
from tfopt._keras.copying import copy_of
from tfopt.data.lookup import Lookup, from_json, to_json
from tfopt.errors import InputError, ModelFileError, VerificationError
from tfopt.export.lookups import check_cut, without_lookups
from tfopt.structure.rebuild import Changes, rebuild

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


def test_two_inputs_of_one_vocabulary(keras, tmp_path):
    """As models that compare two texts have it; each input was once cut behind what the first one became."""
    words = keras.layers.StringLookup(vocabulary=["red", "green", "blue"])
    embed = keras.layers.Embedding(4, 8)
    inputs = [keras.Input((1,), dtype="string", name=name) for name in ("one", "two")]
    parts = [keras.layers.Flatten()(embed(words(tensor))) for tensor in inputs]
    model = keras.Model(inputs, keras.layers.Dense(2, name="y")(keras.layers.Subtract()(parts)))
    given = {"one": np.array([["red"], ["blue"]], object), "two": np.array([["green"], ["green"]], object)}
    want = np.asarray(model([tf.constant(values) for values in given.values()]))
    found = tfopt.Predictor.load(tfopt.export(model, tmp_path / "m.tflite").path).predict(given)["y"]
    np.testing.assert_allclose(found, want, atol=1e-6)


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


@pytest.mark.parametrize("mode", ["multi_hot", "count", "tf_idf"])
@pytest.mark.parametrize("ngrams", [None, 2, (1, 3)], ids=str)
def test_bags_of_words_are_those_of_keras(keras, tmp_path, mode, ngrams):
    layer = vectorizer(keras, output_mode=mode, ngrams=ngrams, output_sequence_length=None)
    inputs = keras.Input(() if keras.__name__ == "keras" else (1,), dtype="string", name="text")
    model = keras.Model(inputs, keras.layers.Dense(3, name="y")(layer(inputs)))
    (lookup,) = without_lookups(model).lookups
    given = as_given(keras, TEXTS)
    np.testing.assert_allclose(lookup.values(TEXTS), np.asarray(layer(tf.constant(given.astype(str)))), rtol=1e-6)
    assert lookup.values([]).shape == (0, lookup.depth)
    assert from_json(to_json([lookup]), "x")[0].values(TEXTS).tolist() == lookup.values(TEXTS).tolist()
    if ngrams == 2:
        predictor = tfopt.Predictor.load(tfopt.export(model, tmp_path / "m.tflite").path)
        np.testing.assert_allclose(predictor.predict(TEXTS)["y"], answers(keras, model), atol=1e-5)


@pytest.mark.parametrize("mode", ["one_hot", "multi_hot", "count", "tf_idf"])
def test_encoded_words_and_numbers_are_those_of_keras(keras, mode):
    idf = {"idf_weights": [0.5, 2.0]} if mode == "tf_idf" else {}
    for kind, known, dtype in (("StringLookup", ["red", "green"], "string"), ("IntegerLookup", [5, 70], "int64")):
        layer = getattr(keras.layers, kind)(vocabulary=known, output_mode=mode, **idf)
        for columns in (1,) if mode == "one_hot" else (1, 2):
            inputs = keras.Input((columns,), dtype=dtype, name="value")
            (lookup,) = without_lookups(keras.Model(inputs, keras.layers.Dense(2)(layer(inputs)))).lookups
            given = np.array([known, known[::-1], [known[0]] * 2, [known[1], "blue" if dtype == "string" else 9]])
            given = given[:, -columns:]
            np.testing.assert_allclose(lookup.values(given), np.asarray(layer(tf.constant(given))), rtol=1e-6)


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_a_table_of_records(keras, tmp_path, quantization):
    """As keras.io classifies structured data: numbers that are normalized, and words and numbers that are encoded."""
    rng = np.random.default_rng(0)
    data = {"age": rng.normal(54, 9, (64, 1)).astype(np.float32), "kind": rng.choice(["normal", "fixed"], (64, 1)),
            "pain": rng.integers(0, 4, (64, 1)), "slope": rng.choice([10, 20, 30], (64, 1)),
            "weight": rng.normal(70, 20, (64, 1)).astype(np.float32)}  # fmt: skip
    keras.utils.set_random_seed(0)
    layers, parts = keras.layers, {}
    inputs = {name: keras.Input((1,), name=name, dtype="string" if values.dtype.kind == "U" else str(values.dtype))
              for name, values in data.items()}  # fmt: skip
    normalize, bins = layers.Normalization(), layers.Discretization(num_bins=4, output_mode="one_hot")
    if keras.__name__ == "tf_keras":  # cannot load those that were adapted
        bins = layers.Discretization([50.0, 70.0, 90.0], output_mode="one_hot")
    else:
        bins.adapt(data["weight"])
    normalize.adapt(data["age"])
    parts["age"], parts["weight"] = normalize(inputs["age"]), bins(inputs["weight"])
    parts["pain"] = layers.CategoryEncoding(4, output_mode="multi_hot")(inputs["pain"])
    parts["kind"] = layers.StringLookup(vocabulary=["normal", "fixed"], output_mode="one_hot")(inputs["kind"])
    parts["slope"] = layers.IntegerLookup(vocabulary=[10, 20, 30], output_mode="one_hot")(inputs["slope"])
    x = layers.Dense(16, activation="relu")(layers.Concatenate()(list(parts.values())))
    model = keras.Model(inputs, layers.Dense(3, name="y")(x))
    data = {name: values.astype(object) if values.dtype.kind == "U" else values for name, values in data.items()}
    want = np.asarray(model({name: tf.constant(values) for name, values in data.items()}))
    copies = [tfopt.models.load(tfopt.models.save(model, tmp_path / "m.keras")), rebuild(model, Changes())]
    for copy in (*copies, copy_of(model)):
        found = np.asarray(copy({name: tf.constant(values) for name, values in data.items()}))
        np.testing.assert_allclose(found, want, atol=1e-6)
    given = {"representative": data} if quantization else {}
    artifact = tfopt.export(model, tmp_path / "m.tflite", quantization=quantization, **given)
    found = tfopt.Predictor.load(artifact.path).predict(data)["y"]
    # A weight close to the end of a bin may be in the next one when it is rounded.
    error = np.quantile(np.abs(found - want), 0.9) if quantization else np.abs(found - want).max()
    assert error < (0.1 if quantization else 1e-5) * np.abs(want).max()
    words = tfopt.export(model, tmp_path / "folder").path
    np.testing.assert_allclose(tfopt.Predictor.load(words).predict(data)["y"], want, atol=1e-5)


def test_what_adapt_taught_goes_with_a_model(keras, tmp_path):
    """A copy once normalized with a mean of 0: weights were its own, and what was computed of them was not."""
    data = np.random.default_rng(0).normal(5, 3, (64, 4)).astype(np.float32)

    def model_of(values):
        layer = keras.layers.Normalization(name="normalize")
        layer.adapt(values)
        inputs = keras.Input((4,), name="x")
        keras.utils.set_random_seed(0)
        return keras.Model(inputs, keras.layers.Dense(3, name="y")(layer(inputs)))

    model = model_of(data)
    want = np.asarray(model(data))
    np.testing.assert_allclose(np.asarray(copy_of(model)(data)), want, atol=1e-6)
    tfopt.store.save(model, tmp_path / "store")
    other = model_of(data * 9)
    assert np.abs(np.asarray(other(data)) - want).max() > 0.1
    np.testing.assert_allclose(np.asarray(tfopt.store.load(other, tmp_path / "store")(data)), want, atol=1e-6)
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        narrow = model_of(data)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    tfopt.export(narrow, tmp_path / "m.tflite")
    assert np.asarray(narrow(data)).dtype == np.float16


def test_what_cannot_be_cut_says_why(keras, tmp_path):
    split = keras.layers.TextVectorization(max_tokens=40, split=None)
    split.adapt(np.array(TEXTS))
    inputs = keras.Input((1,), dtype="string", name="text")
    whole = keras.Model(inputs, keras.layers.Embedding(40, 2)(split(inputs)))
    with pytest.raises(InputError, match=r"TextVectorization '.*' with split=None cannot be cut off"):
        tfopt.export(whole, tmp_path / "m.tflite")
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
        ({"ngrams": [0]}, "bad ngrams"), ({"encoding": "hash"}, "bad encoding"), ({"encoding": "count"}, "bad depth"),
        ({"encoding": "count", "depth": 1, "unknown": 1}, "bad depth"),
        ({"encoding": "tf_idf", "depth": 1, "weights": [float("nan")]}, "bad weights"),
        ({"encoding": "tf_idf", "depth": 2, "weights": [1.0]}, "bad weights"),
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
