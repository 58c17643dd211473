"""Models with layers of others' classes are made anew: the text transformer of the Keras examples."""

import numpy as np
import pytest

import tfopt
from tfopt._keras import keras_api
from tfopt.errors import InputError

from .test_shrink import outputs, parameters, randomized


def text_transformer(keras, with_config=True):
    """The classifier of https://keras.io/examples/nlp/text_classification_with_transformer, small."""
    layers = keras.layers

    class TransformerBlock(layers.Layer):
        def __init__(self, embed_dim, num_heads, ff_dim, **kwargs):
            super().__init__(**kwargs)
            self.arguments = {"embed_dim": embed_dim, "num_heads": num_heads, "ff_dim": ff_dim}
            self.att = layers.MultiHeadAttention(num_heads=num_heads, key_dim=embed_dim)
            self.ffn = keras.Sequential([layers.Dense(ff_dim, activation="relu"), layers.Dense(embed_dim)])
            self.layernorm1 = layers.LayerNormalization(epsilon=1e-6)
            self.layernorm2 = layers.LayerNormalization(epsilon=1e-6)

        def call(self, inputs):
            out1 = self.layernorm1(inputs + self.att(inputs, inputs))
            return self.layernorm2(out1 + self.ffn(out1))

        def get_config(self):
            config = super().get_config()
            return {**config, **self.arguments} if with_config else {**config, **self.arguments, "ff_dim": 4}

    inputs = layers.Input((10,), dtype="int32", name="ids")
    x = layers.Embedding(60, 16)(inputs)
    for _ in range(2):
        x = TransformerBlock(16, 2, 32)(x)
    x = layers.Dense(64, activation="relu", name="hidden")(layers.GlobalAveragePooling1D()(x))
    return keras.Model(inputs, layers.Dense(3, name="logits")(x))


def test_layers_that_make_sublayers_keep_their_weights(keras):
    """Keras numbers their sublayers anew, so no name of a weight inside is what it was."""
    model = randomized(text_transformer(keras))
    named = {"ids": np.random.default_rng(0).integers(0, 60, (4, 10)).astype(np.int32)}
    hidden, logits = (
        next(w for w in keras_api.weights(model) if w.path == f"{n}/kernel") for n in ("hidden", "logits")
    )
    rng = np.random.default_rng(1)
    hidden.variable.assign(rng.standard_normal((16, 4)) @ rng.standard_normal((4, 64)))
    expected = outputs(model, named)
    split = tfopt.factorize(model, rank=4, include="hidden")
    assert parameters(split) < parameters(model)
    np.testing.assert_allclose(outputs(split, named), expected, atol=1e-4 * np.abs(expected).max())
    silent = keras_api.to_numpy(logits.variable).copy()
    silent[::2] = 0
    logits.variable.assign(silent)
    scaled = keras_api.to_numpy(hidden.variable).copy()
    scaled[:, ::2] *= 1e-3
    hidden.variable.assign(scaled)
    expected = outputs(model, named)
    smaller = tfopt.shrink(model, neurons=0.5, include="hidden")
    assert parameters(smaller) == parameters(model) - 32 * (16 + 1 + 3)
    np.testing.assert_allclose(outputs(smaller, named), expected, atol=1e-4 * np.abs(expected).max())


def test_a_layer_whose_configuration_makes_another_is_named(keras):
    model = text_transformer(keras, with_config=False)
    with pytest.raises(
        InputError, match=r"of class TransformerBlock, made anew from its get_config\(\), has weights"
    ):
        tfopt.shrink(model, neurons=0.5)
