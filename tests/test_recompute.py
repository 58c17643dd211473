"""Gradient checkpointing gives the gradients of the model itself, whatever happens inside its layers."""

import dataclasses
import functools

import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import TINY
from tests.test_contract import EACH, OTHER_WAYS
from tfopt._keras import keras_api
from tfopt.compress import quantize
from tfopt.compress.techniques import TECHNIQUES
from tfopt.errors import InputError
from tfopt.models import bert
from tfopt.quantization import QuantizeConfig
from tfopt.structure.recompute import Recomputed
from tfopt.train import TrainConfig, fit, make_strategy
from tfopt.train.strategy import scope

DROPS = dataclasses.replace(TINY, num_hidden_layers=2, hidden_dropout_prob=0.3)
WHILE_TRAINING = {n: way for n, way in {**EACH, **OTHER_WAYS}.items() if way[0] != "distill"}


def batch(rows=4, length=12):
    rng = np.random.default_rng(0)
    ids = rng.integers(3, 300, (rows, length)).astype(np.int32)
    mask = np.ones_like(ids)
    mask[::2, 7:] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}, (ids[:, 0] % 3).astype(np.int64)


def model_of(generation, config=DROPS):
    keras_api.keras_module(generation).utils.set_random_seed(1)
    return bert(config, 3, generation=generation)


def gradients_both_ways(model, x, layers=2):
    """Of the same computation: one by the model's own operations, one by `Recomputed`."""
    variables = [keras_api.tf_variable(v) for v in model.trainable_variables]
    network = Recomputed(model)
    assert len(network._again) == layers

    def both(given):
        with tf.GradientTape() as tape:
            answer, pull = network(given)
            loss = tf.reduce_sum(tf.cast(tf.square(answer), tf.float32))
        return answer, tape.gradient(loss, variables, unconnected_gradients="zero"), pull([2.0 * answer])

    _, expected, found = tf.function(both, autograph=False)(x)
    return expected, found


def check_gradients(model, x):
    expected, found = gradients_both_ways(model, x)
    assert len(expected) == len(found) > 5
    for variable, one, other in zip(model.trainable_variables, expected, found, strict=True):
        np.testing.assert_allclose(
            tf.convert_to_tensor(other), tf.convert_to_tensor(one), atol=1e-5, rtol=1e-4, err_msg=variable.name
        )


def test_dropout_draws_the_same_masks_again(generation):
    model = model_of(generation)
    check_gradients(model, batch()[0])
    network, x = Recomputed(model), batch()[0]
    draw = tf.function(lambda: network(x)[0], autograph=False)
    assert np.abs(draw() - draw()).max() > 1e-3, "and others in the next step"


@pytest.mark.parametrize("case", WHILE_TRAINING)
def test_with_every_technique(case, generation):
    name, config, _ = WHILE_TRAINING[case]
    model = model_of(generation)
    prepared = next(t for t in TECHNIQUES if t.name == name).load().prepare(model, config)
    # Ranges that were seen before, from which those of this batch differ.
    x, _ = batch()
    prepared.model({name: value[:1] for name, value in x.items()}, training=True)
    check_gradients(prepared.model, x)
    if case == "quantize, static":
        counted = [keras_api.to_numpy(v)[2] for v in prepared.state if tuple(v.shape) == (3,)]
        assert set(counted) == {0.0, 2.0}, "every activation is counted once, not twice"


def steps(generation, strategy=None, *, config=TINY, **changes):
    with scope(strategy):
        model = model_of(generation, config)
    loss = keras_api.keras_module(generation).losses.SparseCategoricalCrossentropy(from_logits=True)
    data = tf.data.Dataset.from_tensor_slices(batch(24)).batch(8)
    settings = TrainConfig(epochs=2, batch_size=8, learning_rate=1e-3, **changes)
    fit(
        model, lambda number, skip: data.skip(skip), steps=6, config=settings, strategy=strategy,
        compile_with=lambda o, jit_compile: model.compile(o, loss, jit_compile=jit_compile),
        network=Recomputed(model) if settings.gradient_checkpointing else None,
    )  # fmt: skip
    return {w.path: keras_api.to_numpy(w.variable) for w in keras_api.weights(model)}


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2}, {"jit_compile": True}], ids=str)
def test_a_training_ends_the_same(generation, changes):
    expected, found = steps(generation, **changes), steps(generation, gradient_checkpointing=True, **changes)
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, atol=1e-5, rtol=1e-5, err_msg=path)


@functools.cache
def counted(generation, replicas=1, **changes):
    """Ranges, and how many steps and activations were counted, in quantization-aware training."""
    strategy = make_strategy(replicas) if replicas > 1 else None
    with scope(strategy):
        model = model_of(generation, TINY)
        prepared = quantize.prepare(model, QuantizeConfig(activations="static", warmup_steps=2))
    loss = keras_api.keras_module(generation).losses.SparseCategoricalCrossentropy(from_logits=True)
    data = tf.data.Dataset.from_tensor_slices(batch(24)).batch(8)
    settings = TrainConfig(epochs=2, batch_size=8, learning_rate=1e-3, **changes)
    fit(
        model, lambda number, skip: data.skip(skip), steps=6, config=settings, strategy=strategy,
        callbacks=prepared.callbacks, compile_with=lambda o, jit_compile: model.compile(o, loss),
        network=Recomputed(model, prepared.enter) if settings.gradient_checkpointing else None,
    )  # fmt: skip
    return [keras_api.to_numpy(v) for v in prepared.state]


@pytest.mark.parametrize("replicas", [1, 2], ids="{} replicas".format)
def test_quantization_counts_and_observes_as_without(generation, replicas):
    expected = counted(generation)
    assert expected[0] == 6, "steps"
    found = counted(generation, replicas, gradient_checkpointing=True)
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(other, one, atol=1e-4, rtol=1e-4)


def test_masks_of_keras(generation):
    keras = keras_api.keras_module(generation)
    layers = keras.layers
    start = layers.Input((8,), dtype="int32")
    x = layers.Embedding(60, 16, mask_zero=True)(start)
    for _ in range(2):
        x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 8)(x, x))
        x = layers.LayerNormalization()(x + layers.Dense(16)(layers.Dense(32, "relu")(x)))
    ids = np.random.default_rng(0).integers(1, 60, (4, 8)).astype(np.int32)
    ids[:, 5:] = 0
    check_gradients(keras.Model(start, layers.Dense(3)(x)), ids)


def test_two_replicas(generation):
    found = steps(generation, make_strategy(2), gradient_checkpointing=True)
    for path, value in steps(generation).items():
        np.testing.assert_allclose(found[path], value, atol=1e-5, rtol=1e-5, err_msg=path)


def test_a_model_of_keras_hub():
    keras_hub = pytest.importorskip("keras_hub")
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=300, num_layers=2, num_heads=2, hidden_dim=16, intermediate_dim=32, max_sequence_length=16
    )
    model = keras_hub.models.BertTextClassifier(backbone, num_classes=3, preprocessor=None, dropout=0.1)
    x, _ = batch()
    check_gradients(
        model, {"token_ids": x["input_ids"], "padding_mask": x["attention_mask"], "segment_ids": 0 * x["input_ids"]}
    )


def with_layer_inside(generation, layer):
    """A transformer of Keras layers whose feed-forward part has one more."""
    keras = keras_api.keras_module(generation)
    layers = keras.layers
    x = start = layers.Input((8, 16))
    for _ in range(2):
        x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 8)(x, x))
        x = layers.LayerNormalization()(x + layers.Dense(16)(layer()(layers.Dense(32)(x))))
    return keras.Model(start, layers.Dense(3)(x))


def test_a_layer_that_cannot_run_twice_is_named(generation):
    keras = keras_api.keras_module(generation)

    class Noise(keras.layers.Layer):
        def call(self, x):
            return x + tf.random.normal(tf.shape(x))

    x = np.ones((2, 8, 16), np.float32)
    check_gradients(with_layer_inside(generation, lambda: keras.layers.GaussianNoise(0.3)), x)
    with pytest.raises(
        InputError, match=r"noise.* changes something, or draws random numbers.*RandomStandardNormal"
    ):
        gradients_both_ways(with_layer_inside(generation, Noise), x)
    with pytest.raises(InputError, match=r"batch_normalization.* changes something"):
        gradients_both_ways(with_layer_inside(generation, keras.layers.BatchNormalization), x)

    class Loss(keras.layers.Layer):
        def call(self, x):
            self.add_loss(tf.reduce_mean(tf.square(x)))
            return x

    for layer in (lambda: keras.layers.Dense(32, activity_regularizer="l2"), Loss):
        with pytest.raises(InputError, match="has a loss of what passes it"):
            gradients_both_ways(with_layer_inside(generation, layer), x)


def test_a_model_without_layers_of_attention_is_refused(generation):
    keras = keras_api.keras_module(generation)
    with pytest.raises(InputError, match="no layers of attention"):
        Recomputed(keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(3)]))
