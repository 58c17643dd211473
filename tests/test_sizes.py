"""Inputs by what they do: masks of any name, ids of their own tables, sizes by axis and input."""

import numpy as np
import pytest

import tfopt
from tfopt._keras.input_facts import draw, facts_of
from tfopt._keras.keras_io import inputs_of
from tfopt.errors import InputError
from tfopt.numerics.agreement import varies


def attended(keras, x, keep):
    """The mean of what is not masked, weighted by what it holds."""
    layers = keras.layers
    scores = layers.Permute((2, 1))(layers.Dense(1)(x))
    scores = scores + (layers.Reshape((1, -1))(layers.Rescaling(1.0)(keep)) - 1.0) * 1e4
    return layers.Dot((2, 1))([layers.Softmax()(scores), x])


def pooled(keras):
    """Ids and segments of their own tables, and a mask that no name gives away."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    ids, kinds, keep = (layers.Input((None,), dtype="int32", name=name) for name in ("words", "kinds", "there"))
    x = layers.Embedding(40, 16)(ids) + layers.Embedding(3, 16)(kinds)
    y = layers.Dense(4, name="y")(layers.Flatten()(attended(keras, x, keep)))
    return keras.Model({"words": ids, "kinds": kinds, "there": keep}, y)


def two_lengths(keras):
    """Sounds of one length and text of another, as in Whisper; only the text has a mask."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    sound = layers.Input((None, 6), name="sound")
    ids, keep = (layers.Input((None,), dtype="int32", name=name) for name in ("text", "text_mask"))
    heard = layers.GlobalAveragePooling1D()(layers.Conv1D(16, 3, padding="same", activation="relu")(sound))
    x = layers.Embedding(30, 16)(ids) + layers.Reshape((1, 16))(heard)
    return keras.Model([sound, ids, keep], layers.Dense(8, name="each")(x + attended(keras, x, keep)))


def image(keras):
    keras.utils.set_random_seed(0)
    layers = keras.layers
    return keras.Sequential([
        layers.Input((None, None, 3), name="image"), layers.Rescaling(1 / 255), layers.Conv2D(8, 3, activation="relu"),
        layers.GlobalAveragePooling2D(), layers.Dense(4),
    ])  # fmt: skip


def test_masks_are_found_by_what_they_do(keras):
    facts = {make: facts_of(model := make(keras), inputs_of(model), 8) for make in (pooled, two_lengths, image)}
    assert facts[pooled].masks == {"there": ("words", "kinds")}
    assert facts[pooled].rows == {"words": 40, "kinds": 3}
    assert facts[two_lengths].masks == {"text_mask": ("text",)}
    low, high = facts[image].spans["image"]
    assert (float(low), float(high)) == (0, pytest.approx(255)) and facts[image].masks == {}


def test_our_own_models_and_causal_ones(generation):
    causal = tfopt.models.causal_lm(
        tfopt.models.CausalLMConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=32,
        ),
        generation=generation,
    )  # fmt: skip
    facts = facts_of(causal, inputs_of(causal), 8)
    assert facts.masks == {"attention_mask": ("input_ids",)} and facts.rows == {"input_ids": 50}


def test_samples_use_the_whole_of_each_table(keras):
    model = pooled(keras)
    inputs = inputs_of(model)
    samples = draw(inputs, facts_of(model, inputs, 8), 16, size=32)
    assert samples["words"].max() > 30 and samples["kinds"].max() == 2
    assert set(samples["there"].sum(1)) == {32, 28, 24, 20}
    assert varies(np.asarray(model(samples)))


@pytest.mark.parametrize("quantization", [None, "dynamic_int8"])
def test_shorter_texts_are_padded_under_any_name_of_the_mask(keras, tmp_path, quantization):
    model = pooled(keras)
    artifact = tfopt.export(model, tmp_path / "m.tflite", quantization=quantization, lengths=[16, 32])
    predictor = tfopt.Predictor.load(artifact.path)
    assert predictor.lengths == (16, 32)
    rng = np.random.default_rng(0)
    given = {
        "words": rng.integers(0, 40, (3, 11)),
        "kinds": rng.integers(0, 3, (3, 11)),
        "there": np.ones((3, 11), int),
    }
    expected = np.asarray(model({name: value.astype(np.int32) for name, value in given.items()}))
    np.testing.assert_allclose(predictor.predict(given)["y"], expected, atol=1e-5 if quantization is None else 0.1)
    with pytest.raises(InputError, match="input 'kinds' takes ids from 0 to 2, got 5"):
        predictor.predict({**given, "kinds": given["kinds"] + 3})
    with pytest.raises(InputError, match="there must hold 0 and 1, got 1 to 2"):
        predictor.predict({**given, "there": given["there"] + np.arange(11) % 2})
    with pytest.raises(InputError, match="a sequence of 33 tokens is longer than the longest exported length 32"):
        predictor.predict({name: np.ones((1, 33), int) for name in given})


def test_a_mask_of_any_name_gives_default_lengths(keras, tmp_path):
    assert tfopt.export(pooled(keras), tmp_path / "m.tflite").lengths == (32, 64, 128)


@pytest.mark.parametrize("target", ["m.tflite", "m"])
def test_sizes_by_input(keras, tmp_path, target):
    model = two_lengths(keras)
    sizes = [{"sound": 20, "text": 4, "text_mask": 4}, {"sound": (20,), "text": 8, "text_mask": 8}]
    settings = {"jit_compile": True} if target == "m" else {}
    artifact = tfopt.export(model, tmp_path / target, lengths=sizes, **settings)
    assert artifact.lengths[0] == {"sound": (20,), "text": (4,), "text_mask": (4,)}
    predictor = tfopt.Predictor.load(artifact.path)
    rng = np.random.default_rng(0)
    given = {
        "sound": rng.standard_normal((2, 20, 6)).astype(np.float32), "text": rng.integers(0, 30, (2, 6)),
        "text_mask": np.ones((2, 6), int),
    }  # fmt: skip
    expected = np.asarray(model([given["sound"], *(given[n].astype(np.int32) for n in ("text", "text_mask"))]))
    (found,) = predictor.predict(given).values()
    assert found.shape == (2, 6, 8)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    with pytest.raises(InputError, match="the artifact takes .*sound"):  # nothing says what of a sound is padding
        predictor.predict({**given, "sound": given["sound"][:, :10]})


def test_rectangular_images(keras, tmp_path):
    model = image(keras)
    x = np.random.default_rng(0).uniform(0, 255, (3, 20, 12, 3)).astype(np.float32)
    for quantization in (None, "int8"):
        tfopt.export(
            model, tmp_path / "m.tflite", quantization=quantization, lengths=[{"image": (20, 12)}],
            representative={"image": x},
        )  # fmt: skip
        (found,) = tfopt.Predictor.load(tmp_path / "m.tflite").predict(x).values()
        expected = np.asarray(model(x))
        np.testing.assert_allclose(
            found, expected, atol=(1e-5 if quantization is None else 0.1) * np.abs(expected).max()
        )


@pytest.mark.parametrize(
    ("make", "lengths", "says"),
    [
        (image, None, r"any size along axes 1 and 2 of input 'image', and nothing says which of it is padding"),
        (two_lengths, None, r"any size along axis 1 of input 'sound', axis 1 of input 'text'"),
        (image, [{"picture": 3}], r"sizes must be given for axes 1 and 2 of input 'image', got picture"),
        (image, [{"image": 3}], r"sizes of axes 1 and 2 of input 'image' must be as many numbers above 0, got 3"),
        (image, [{"image": (3, 0)}], r"must be as many numbers above 0, got \(3, 0\)"),
        (image, ["32"], r"lengths must hold numbers, or mappings from inputs to sizes, got '32'"),
        (image, [{"image": (2, 2)}], r"the model does not take axes 1 and 2 of input 'image' of size 2x2"),
    ],
)
def test_messages_speak_of_the_axis_that_is_open(keras, tmp_path, make, lengths, says):
    with pytest.raises(InputError, match=says):
        tfopt.export(make(keras), tmp_path / "m.tflite", lengths=lengths)
    assert not list(tmp_path.iterdir())
