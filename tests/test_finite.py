"""Trainings and models that are no longer finite are noticed where it happens."""

import numpy as np
import pytest
import tensorflow as tf

import tfopt
from tfopt._keras import keras_api
from tfopt.errors import InputError, WorkFailedError
from tfopt.train.strategy import scope


def small(keras, activation="relu"):
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Input((4,)), keras.layers.Dense(8, activation=activation, name="one"),
              keras.layers.Dense(3, name="two")]  # fmt: skip
    return keras.Sequential(layers)


def data(broken, value=np.nan):
    x = np.random.default_rng(0).standard_normal((32, 4)).astype(np.float32)
    if broken is not None:
        x[broken * 8] = value
    return tf.data.Dataset.from_tensor_slices((x, np.arange(32) % 3)).batch(8)


@pytest.mark.parametrize("broken", [0, 2, 3])
def test_a_training_ends_at_the_step_and_keeps_the_last_good_weights(keras, strategy, broken):
    """Of the last batch, whose weights no later loss shows, too."""
    with scope(strategy):
        model, twin = small(keras), small(keras)
        for one in (model, twin):
            one.compile(keras.optimizers.Adam(1e-2), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    says = rf"fine: weight 'one/kernel' became NaN .*32 of 32 values.* in batch {broken + 1} of epoch 1"
    with pytest.raises(WorkFailedError, match=says):
        model.fit(data(broken), callbacks=[tfopt.callbacks.FiniteWeights("fine")], verbose=0)
    if broken:
        twin.fit(data(None).take(broken), verbose=0)
    for found, expected in zip(keras_api.weights(model), keras_api.weights(twin), strict=True):
        np.testing.assert_allclose(keras_api.to_numpy(found.variable), keras_api.to_numpy(expected.variable), 1e-5)


def test_a_loss_of_zero_does_not_hide_it(keras):
    """Behind a ReLU, weights of minus infinity give 0."""
    dense = keras.layers.Dense(3, activation="relu", kernel_initializer="ones")
    model = keras.Sequential([keras.layers.Input((4,)), dense])
    model.compile(keras.optimizers.SGD(1e38), "mse")
    x, y = np.full((16, 4), 1e3, np.float32), np.zeros((16, 3), np.float32)
    model.fit(x[:8], y[:8], verbose=0)
    assert not np.isfinite(keras_api.to_numpy(dense.kernel)).any() and model.evaluate(x, y, verbose=0) == 0
    dense.kernel.assign(np.ones((4, 3)))
    dense.bias.assign(np.zeros(3))
    with pytest.raises(WorkFailedError, match="became NaN or infinite"):
        model.fit(x, y, epochs=3, callbacks=[tfopt.callbacks.FiniteWeights()], verbose=0)
    assert all(np.isfinite(keras_api.to_numpy(w.variable)).all() for w in keras_api.weights(model))


def test_a_student_s_weights_are_looked_at_and_the_teacher_s_are_not(keras):
    distiller = tfopt.Distiller(small(keras), small(keras))
    distiller.compile(keras.optimizers.SGD(1e-2))
    features = data(2).map(lambda x, y: x)
    with pytest.raises(WorkFailedError, match="weight '.*one/kernel' became NaN .* in batch 3 of epoch 1"):
        distiller.model.fit(distiller.teach(features), callbacks=[tfopt.callbacks.FiniteWeights()], verbose=0)
    student = distiller.student
    assert all(np.isfinite(keras_api.to_numpy(w.variable)).all() for w in keras_api.weights(student))


def test_a_model_that_is_broken_before_it_starts_is_said(keras):
    model = small(keras)
    model.layers[0].bias.assign(np.full(8, np.inf))
    model.compile("sgd", "mse")
    with pytest.raises(WorkFailedError, match="'one/bias' became NaN .*8 of 8 values.* before the first batch"):
        model.fit(np.ones((4, 4)), np.ones((4, 3)), callbacks=[tfopt.callbacks.FiniteWeights()], verbose=0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("target", ["m.tflite", "m"])
def test_no_export_takes_weights_that_are_not_finite(keras, target, value, tmp_path):
    """The second Dense multiplies what the ReLU left of them with zero: no output shows it."""
    model = small(keras)
    kernel = np.array(model.layers[0].kernel)
    kernel[1, 2] = -value
    model.layers[0].kernel.assign(kernel)
    with pytest.raises(InputError, match=r"weight 'one/kernel' holds NaN or infinity \(1 of 32 values\)"):
        tfopt.export(model, tmp_path / target)
    assert not (tmp_path / target).exists()
