"""What a training ends with: averages of weights, the best pass, an early end, a rate that falls."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests.test_training import check_equal
from tfopt._keras import keras_api
from tfopt.compress.prune import MagnitudePruning
from tfopt.errors import InputError
from tfopt.schedules import ConstantSparsity
from tfopt.train import TrainConfig, fit
from tfopt.train.strategy import scope

CONFIG = TrainConfig(
    epochs=6, batch_size=8, optimizer="sgd", learning_rate=0.05, schedule="constant", warmup=0.0, clip_norm=0.0,
    weight_decay=0.0,
)  # fmt: skip


class Note(keras_api.Callback):
    """The weights after each step, and the rate."""

    def __init__(self):
        self._supports_tf_logs = True
        self.weights, self.rates = [], []

    def on_train_batch_end(self, batch, logs=None):
        self.weights.append([keras_api.to_numpy(w.variable).copy() for w in keras_api.weights(self.model)])
        self.rates.append(float(keras_api.to_numpy(self.model.optimizer.learning_rate)))


def trained(generation, config, strategy=None, *, callbacks=(), validation=None):
    keras = keras_api.keras_module(generation)
    keras.utils.set_random_seed(0)
    with scope(strategy):
        layers = keras.layers
        model = keras.Sequential([layers.Input((6,)), layers.Dense(8, "relu"), layers.Dense(3)])
    rng = np.random.default_rng(0)
    data = tf.data.Dataset.from_tensor_slices(
        (rng.normal(size=(24, 6)).astype(np.float32), rng.integers(0, 3, 24))
    ).batch(8)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    history = fit(
        model, lambda number, skip: data.skip(skip), config=config, steps=3 * config.epochs, strategy=strategy,
        callbacks=list(callbacks), validation=data if validation is None else validation,
        compile_with=lambda optimizer, **_: model.compile(optimizer, loss),
    )  # fmt: skip
    return model, history


def held_out(sign):
    """Data on which the loss falls, or, with other labels than those that are learned, grows."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(24, 6)).astype(np.float32), rng.integers(0, 3, 24)
    return tf.data.Dataset.from_tensor_slices((x, y if sign > 0 else (y + 1) % 3)).batch(8)


def values(model):
    return [keras_api.to_numpy(w.variable) for w in keras_api.weights(model)]


def test_the_average_of_the_weights(generation, strategy):
    """As it is computed by hand; it is what is evaluated, and the weights that are trained are not touched by it."""
    note, plain = Note(), Note()
    model, history = trained(
        generation, dataclasses.replace(CONFIG, ema=0.8), strategy, callbacks=[note], validation=held_out(1)
    )
    alone, other = trained(generation, CONFIG, callbacks=[plain], validation=held_out(1))
    start = trained(generation, dataclasses.replace(CONFIG, epochs=1, learning_rate=1e-30))[0]
    averages = values(start)
    for step, (found, expected) in enumerate(zip(note.weights, plain.weights, strict=True), 1):
        for one, two in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, two, atol=1e-5)
        decay = min(0.8, step / (step + 10))
        averages = [decay * a + (1 - decay) * w for a, w in zip(averages, found, strict=True)]
    for one, two in zip(values(model), averages, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)
    for weight, average in zip(keras_api.weights(alone), averages, strict=True):
        weight.variable.assign(average)
    assert history["val_loss"][-1] == pytest.approx(alone.evaluate(held_out(1), verbose=0), rel=1e-4)
    assert history["val_loss"][-1] != pytest.approx(other["val_loss"][-1], rel=1e-3)


def test_the_best_pass_is_kept_and_the_training_ends_early(generation, strategy):
    note = Note()
    model, history = trained(
        generation, dataclasses.replace(CONFIG, keep_best=True, patience=2), strategy, callbacks=[note],
        validation=held_out(-1),
    )  # fmt: skip
    losses = history["val_loss"]
    best = int(np.argmin(losses))
    assert len(losses) == best + 3 < 6, "two passes in a row were no better"
    for one, two in zip(values(model), note.weights[3 * best + 2], strict=True):
        np.testing.assert_array_equal(one, two)
    same, more = trained(generation, dataclasses.replace(CONFIG, keep_best=True), validation=held_out(1))
    assert np.argmin(more["val_loss"]) == 5 and len(more["val_loss"]) == 6
    check_equal(same, trained(generation, CONFIG)[0])


def test_a_rate_that_falls_where_nothing_gets_better(generation):
    note = Note()
    _, history = trained(
        generation, dataclasses.replace(CONFIG, schedule="plateau"), callbacks=[note], validation=held_out(-1)
    )
    losses = history["val_loss"]
    worse = [loss >= min(losses[:i], default=np.inf) for i, loss in enumerate(losses)]
    expected = np.repeat([0.05 * 0.5 ** sum(worse[:i]) for i in range(6)], 3)
    np.testing.assert_allclose(note.rates, expected, rtol=1e-5)
    assert note.rates[-1] < 0.01


def test_masks_hold_whatever_is_kept(generation):
    pruning = MagnitudePruning(ConstantSparsity(0.5, 0, frequency=1))
    for settings in ({"ema": 0.9}, {"keep_best": True}):
        model, history = trained(generation, dataclasses.replace(CONFIG, **settings), callbacks=[pruning])
        assert len(history["sparsity"]) == CONFIG.epochs, "what callbacks tell is in the history"
        kernels = [v for v in values(model) if v.ndim == 2]
        assert all(abs((k == 0).mean() - 0.5) < 0.05 for k in kernels)


@pytest.mark.parametrize("settings", [{"keep_best": True}, {"patience": 1}, {"schedule": "plateau"}])
def test_what_is_judged_needs_something_to_judge_by(settings, generation):
    keras = keras_api.keras_module(generation)
    model = keras.Sequential([keras.layers.Input((6,)), keras.layers.Dense(3)])
    with pytest.raises(InputError, match="need validation data"):
        fit(
            model, lambda number, skip: None, config=dataclasses.replace(CONFIG, **settings), steps=1,
            compile_with=lambda optimizer, **_: model.compile(optimizer, "mse"),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "says"), [({"ema": 1.0}, "ema must be in"), ({"patience": 0}, "patience must be")]
)
def test_bad_settings(wrong, says):
    with pytest.raises(InputError, match=says):
        TrainConfig(**wrong)
