"""The training loop: what `model.fit` would do, and one step for a batch however it is divided."""

import dataclasses
import typing

import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import TINY
from tfopt._keras import keras_api
from tfopt._keras.precision import default_policy
from tfopt.data.features import IGNORED, weighted_by_what_counts
from tfopt.errors import InputError, WorkFailedError
from tfopt.models import bert
from tfopt.numerics.smoothed_labels import smoothed_cross_entropy
from tfopt.run.pipeline import run
from tfopt.schedules import Clipping
from tfopt.structure.depth import depth_of_weights
from tfopt.structure.outputs import loss_of_labels
from tfopt.train import TrainConfig, fit
from tfopt.train.loop import Evaluation
from tfopt.train.strategy import scope

ROWS, BATCH = 42, 8  # a last batch of two rows, fewer than two replicas have parts
CONFIG = TrainConfig(epochs=3, batch_size=BATCH, learning_rate=3e-3, warmup=0.0, schedule="constant")
STEPS = 3 * 6


def records(rows=ROWS):
    rng = np.random.default_rng(0)
    ids = rng.integers(3, 300, (rows, 12)).astype(np.int32)
    mask = np.ones_like(ids)
    mask[::3, 7:] = 0
    return tf.data.Dataset.from_tensor_slices(
        ({"input_ids": ids * mask, "attention_mask": mask}, (ids[:, 0] % 3).astype(np.int64))
    )


def made(generation, strategy=None):
    keras = keras_api.keras_module(generation)
    keras.utils.set_random_seed(1)
    with scope(strategy):
        return bert(TINY, 3, generation=generation)


def compiled(model, optimizer, **settings):
    keras = keras_api.keras_module(keras_api.generation_of(model))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")], **settings)


def trained(generation, config=CONFIG, strategy=None, **settings):
    model = made(generation, strategy)
    data = records().batch(BATCH)
    history = fit(
        model, lambda number, skip: data.skip(skip), config=config, steps=STEPS, strategy=strategy,
        compile_with=lambda optimizer, **given: compiled(model, optimizer, **given), **settings,
    )  # fmt: skip
    return model, history


def check_equal(one, other, tolerance=1e-5):
    for a, b in zip(keras_api.weights(one), keras_api.weights(other), strict=True):
        ours, theirs = keras_api.to_numpy(a.variable), keras_api.to_numpy(b.variable)
        np.testing.assert_allclose(ours, theirs, atol=tolerance, err_msg=a.path)


def test_it_is_what_fit_does(generation):
    """By SGD: the Adam of Keras 3.15.1 squares the gradient of each mention of a token, not that of the token."""
    keras = keras_api.keras_module(generation)
    validation = records(20).batch(8)
    model, history = trained(
        generation, dataclasses.replace(CONFIG, clip_norm=0.0, optimizer="sgd", learning_rate=0.1),
        validation=validation,
    )  # fmt: skip
    plain = made(generation)
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    optimizer.exclude_from_weight_decay(var_list=[w for w in plain.trainable_variables if len(w.shape) < 2])
    compiled(plain, optimizer)
    expected = plain.fit(
        records().batch(BATCH), epochs=3, validation_data=validation, verbose=0, shuffle=False
    ).history  # fmt: skip
    check_equal(model, plain)
    assert set(history) == set(expected) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    for name, values in expected.items():
        np.testing.assert_allclose(history[name], values, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_step_is_the_same_however_the_batch_is_divided(generation, strategy, accumulate):
    config = dataclasses.replace(CONFIG, accumulate=accumulate, clip_norm=0.1)
    validation = records(9).batch(4)  # and one row alone
    model, history = trained(generation, config, strategy, validation=validation)
    alone, expected = trained(generation, dataclasses.replace(config, accumulate=1), validation=validation)
    check_equal(model, alone)
    for name in ("loss", "val_loss", "val_accuracy"):
        np.testing.assert_allclose(history[name], expected[name], rtol=1e-3, err_msg=name)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_labels_that_are_ignored(generation, strategy, accumulate):
    """As Keras leaves them out of a whole batch, wherever they are in its parts."""
    keras = keras_api.keras_module(generation)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(24, 5, 6)).astype(np.float32), rng.integers(0, 3, (24, 5))
    y[rng.random(y.shape) < 0.5] = IGNORED
    y[::8] = IGNORED
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    models = []
    for place in (strategy, None):
        keras.utils.set_random_seed(0)
        with scope(place):
            models.append(keras.Sequential([keras.layers.Input((5, 6)), keras.layers.Dense(3)]))
    ours, plain = models
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=IGNORED)
    plain.compile(keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True), loss)
    expected = plain.fit(data, epochs=3, verbose=0).history["loss"]
    config = dataclasses.replace(
        CONFIG, optimizer="sgd", learning_rate=0.1, weight_decay=0.0, clip_norm=0.0, accumulate=accumulate
    )
    weighted = weighted_by_what_counts(data)
    found = fit(
        ours, lambda number, skip: weighted, config=config, steps=9, strategy=strategy,
        compile_with=lambda optimizer, **_: ours.compile(
            optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        ),
    )  # fmt: skip
    check_equal(ours, plain)
    np.testing.assert_allclose(found["loss"], expected, rtol=1e-4)


@pytest.mark.parametrize("kind", typing.get_args(Clipping))
def test_gradients_are_bounded_as_keras_does(generation, kind):
    keras = keras_api.keras_module(generation)
    x, y = np.random.default_rng(0).normal(size=(2, 16, 6)).astype(np.float32)
    models = []
    for _ in range(2):
        keras.utils.set_random_seed(0)
        models.append(keras.Sequential([keras.layers.Input((6,)), keras.layers.Dense(8), keras.layers.Dense(6)]))
    ours, plain = models
    names = {"global_norm": "global_clipnorm", "norm": "clipnorm", "value": "clipvalue"}
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True, **{names[kind]: 0.05})
    plain.compile(optimizer, "mse")
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    plain.fit(data, epochs=2, verbose=0)
    config = dataclasses.replace(
        CONFIG, epochs=2, batch_size=4, optimizer="sgd", learning_rate=0.1, weight_decay=0.0, clip=kind,
        clip_norm=0.05,
    )  # fmt: skip
    fit(
        ours, lambda number, skip: data, config=config, steps=8,
        compile_with=lambda optimizer, **_: ours.compile(optimizer, "mse"),
    )  # fmt: skip
    check_equal(ours, plain, 1e-6)


def test_what_is_computed_at_once(generation):
    """Two rows at a time, though the batch has eight."""
    seen = []

    def note(x):
        seen.append(len(x))
        return x

    keras = keras_api.keras_module(generation)
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(2)])
    x = np.ones((8, 4), np.float32)
    data = tf.data.Dataset.from_tensor_slices((x, np.zeros((8, 2), np.float32))).batch(8)
    layer = model.layers[0]
    call = layer.call
    layer.call = lambda x, **_: tf.ensure_shape(tf.py_function(note, [call(x)], tf.float32), (None, 2))
    config = dataclasses.replace(CONFIG, epochs=1, accumulate=4)
    fit(
        model, lambda number, skip: data, config=config, steps=1,
        compile_with=lambda optimizer, **_: model.compile(optimizer, "mse"),
    )  # fmt: skip
    assert seen == [2, 2, 2, 2]


def test_evaluation_is_that_of_keras(generation, strategy):
    model = made(generation, strategy)
    with scope(strategy):
        compiled(model, "sgd")
    plain = made(generation)
    compiled(plain, "sgd")
    for rows in (17, 16):
        data = records(rows).batch(8)
        found = Evaluation(model, data, strategy)()
        expected = plain.evaluate(data, return_dict=True, verbose=0)
        assert found == pytest.approx(expected, rel=1e-5)


def test_a_loss_that_is_not_finite_names_the_gradients_and_keeps_the_weights(generation, strategy):
    """The bad batch is the second; the model is as it was after the first."""
    keras = keras_api.keras_module(generation)
    x = np.random.default_rng(0).normal(size=(24, 4)).astype(np.float32)

    def run(x, batches):
        keras.utils.set_random_seed(0)
        with scope(strategy):
            model = keras.Sequential([
                keras.layers.Input((4,)), keras.layers.Dense(3, name="one"), keras.layers.Dense(2, name="two")
            ])  # fmt: skip
        data = tf.data.Dataset.from_tensor_slices((x, np.zeros((len(x), 2), np.float32))).batch(8).take(batches)
        try:
            fit(
                model, lambda number, skip: data, config=dataclasses.replace(CONFIG, epochs=1), steps=3,
                compile_with=lambda optimizer, **_: model.compile(optimizer, "mse"), strategy=strategy,
            )  # fmt: skip
        except WorkFailedError as error:
            return model, str(error)
        return model, ""

    bad = x.copy()
    bad[9, 1] = np.nan
    model, said = run(bad, 3)
    assert "train: the loss was nan in batch 2 of epoch 1; not finite are the gradients of 'one/kernel'" in said
    assert "and 1 more. The model has the weights of before" in said
    check_equal(model, run(x, 1)[0])


@pytest.mark.parametrize(("wrong", "says"), [
    ({"accumulate": 0}, "accumulate must be 1 or more, got 0"), ({"layer_decay": 0.0}, "layer_decay must be in"), ({"clip": "norms"}, "did you mean 'norm'"),
])  # fmt: skip
def test_bad_settings(wrong, says):
    with pytest.raises(InputError, match=says):
        TrainConfig(**wrong)


def test_xla_is_for_one_replica(generation, strategy):
    if strategy is None:
        _, history = trained(generation, dataclasses.replace(CONFIG, jit_compile=True, epochs=1))
        assert np.isfinite(history["loss"]).all()
        return
    with pytest.raises(InputError, match="jit_compile is for one replica"):
        trained(generation, dataclasses.replace(CONFIG, jit_compile=True), strategy)


def test_batches_that_cannot_be_divided(generation, strategy):
    replicas = 1 if strategy is None else strategy.num_replicas_in_sync
    with pytest.raises(InputError, match=f"batch_size 8 cannot be divided by {replicas} replicas and 3 .*; take "):
        trained(generation, dataclasses.replace(CONFIG, accumulate=3), strategy)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_lower_layers_learn_slower(generation, strategy, policy):
    """By one step of SGD, which changes each weight by what its layer's share of the rate is."""
    keras = keras_api.keras_module(generation)
    config = dataclasses.replace(TINY, num_hidden_layers=2)

    def one_step(decay):
        keras.utils.set_random_seed(1)
        with default_policy(keras, policy), scope(strategy):
            model = bert(config, 3, generation=generation)
        start = {w.path: keras_api.to_numpy(w.variable).copy() for w in keras_api.weights(model)}
        depths = depth_of_weights(model)
        fit(
            model, lambda number, skip: records(8).batch(8), steps=1, strategy=strategy, depths=depths,
            config=dataclasses.replace(
                CONFIG, epochs=1, optimizer="sgd", learning_rate=0.5, layer_decay=decay, clip_norm=0.0,
                weight_decay=0.0,
            ),
            compile_with=lambda optimizer, **given: compiled(model, optimizer),
        )  # fmt: skip
        return depths, {w.path: keras_api.to_numpy(w.variable) - start[w.path] for w in keras_api.weights(model)}

    depths, slow = one_step(0.5)
    _, plain = one_step(1.0)
    assert set(depths.values()) == {0, 1, 2, 3} and depths["word_embeddings/embeddings"] == 3
    assert depths["logits/kernel"] == 0
    for path, change in plain.items():
        close = 1e-6 if policy == "float32" else 2e-3
        np.testing.assert_allclose(slow[path], change * 0.5 ** depths[path], atol=close, err_msg=path)
        assert np.abs(change).max() > 0 or "token_type" in path or path.endswith("key/bias")


def test_depths_have_to_be_known(generation):
    with pytest.raises(InputError, match="layer_decay needs to know the layers"):
        trained(generation, dataclasses.replace(CONFIG, layer_decay=0.9))
    keras = keras_api.keras_module(generation)
    with pytest.raises(InputError, match="has no layers of attention"):
        depth_of_weights(keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(3)]))


def test_a_recipe_whose_batches_cannot_be_divided_writes_nothing(tiny_recipe, tmp_path):
    path = tiny_recipe()
    path.write_text(path.read_text().replace("[train]\n", "[train]\naccumulate = 3\n"))
    with pytest.raises(InputError, match="batch_size 16 cannot be divided by 1 replicas and 3 parts .*; take 18"):
        run(path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("from_logits", [True, False])
def test_smoothed_labels_are_those_of_keras(generation, from_logits):
    """Which smooths one-hot labels alone; of classes and of tags."""
    keras = keras_api.keras_module(generation)
    rng = np.random.default_rng(0)
    for shape in ((6,), (4, 5)):
        labels, logits = rng.integers(0, 3, shape), rng.normal(size=(*shape, 3)).astype(np.float32)
        outputs = logits if from_logits else tf.nn.softmax(logits).numpy()
        found = smoothed_cross_entropy(0.1, from_logits=from_logits)(tf.constant(labels), tf.constant(outputs))
        theirs = keras.losses.CategoricalCrossentropy(from_logits=from_logits, label_smoothing=0.1)
        assert found.shape == shape
        assert float(tf.reduce_mean(found)) == pytest.approx(float(theirs(np.eye(3)[labels], outputs)), rel=1e-5)


def test_smoothed_labels_train_as_keras_would(generation):
    """By its own loss on one-hot labels, and so for every output of a model with several."""
    keras = keras_api.keras_module(generation)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(32, 6)).astype(np.float32), rng.integers(0, 3, 32)
    models = []
    for loss, labels in (
        (loss_of_labels(keras, "logits", smoothing=0.2), y),
        (keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2), np.eye(3)[y]),
    ):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.layers.Input((6,)), keras.layers.Dense(3)])
        model.compile(keras.optimizers.SGD(0.1), loss)
        model.fit(x, labels, epochs=3, verbose=0, shuffle=False)
        models.append(model)
    check_equal(*models)
