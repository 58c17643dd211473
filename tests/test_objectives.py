"""Losses of two passes: other masks of dropout, texts moved in embedding space; and noise on tokens."""

import dataclasses

import numpy as np
import pytest
import scipy.special
import scipy.stats
import tensorflow as tf

from tests.conftest import TINY
from tfopt._keras import keras_api
from tfopt.data.noise import noisy
from tfopt.errors import InputError
from tfopt.models import bert, causal_lm
from tfopt.models.causal_lm import CausalLMConfig
from tfopt.recipe import Recipe
from tfopt.run.pipeline import build
from tfopt.train import TrainConfig, fit, make_strategy
from tfopt.train.objectives import Adversarial, _divergence
from tfopt.train.strategy import scope

PLAIN = dataclasses.replace(TINY, hidden_dropout_prob=0.0)
SMALL = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
         "max_position_embeddings": 8}  # fmt: skip
DROPS = dataclasses.replace(TINY, hidden_dropout_prob=0.4)


def batch(rows=24):
    rng = np.random.default_rng(0)
    ids = rng.integers(3, 300, (rows, 12)).astype(np.int32)
    mask = np.ones_like(ids)
    mask[::2, 7:] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}, (ids[:, 0] % 3).astype(np.int64)


def compiled(generation, shape=PLAIN, strategy=None):
    keras = keras_api.keras_module(generation)
    keras.utils.set_random_seed(1)
    with scope(strategy):
        model = bert(shape, 3, generation=generation)
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def trained(generation, strategy=None, *, shape=PLAIN, passes=2, scale=1.0, **changes):
    model = compiled(generation, shape, strategy)
    for weight in keras_api.weights(model):
        if weight.name == "kernel":
            weight.variable.assign(scale * keras_api.to_numpy(weight.variable))
    loss = keras_api.keras_module(generation).losses.SparseCategoricalCrossentropy(from_logits=True)
    data = tf.data.Dataset.from_tensor_slices(batch()).batch(8)
    fit(
        model, lambda number, skip: data.skip(skip), steps=3 * passes, strategy=strategy,
        config=TrainConfig(epochs=passes, batch_size=8, **{"learning_rate": 1e-3, **changes}),
        compile_with=lambda optimizer, jit_compile: model.compile(optimizer, loss),
    )  # fmt: skip
    return model


def values(model):
    return {w.path: keras_api.to_numpy(w.variable) for w in keras_api.weights(model)}


def test_divergence_is_that_of_scipy():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 5, 4, 3)).astype(np.float32) * 3
    p, q = scipy.special.softmax(one, -1), scipy.special.softmax(other, -1)
    both_ways = 0.5 * (scipy.stats.entropy(p, q, axis=-1) + scipy.stats.entropy(q, p, axis=-1))
    assert _divergence(one, other, None).numpy() == pytest.approx(both_ways.mean(), rel=1e-5)
    weight = np.array([2.0, 0.0, 1.0, 1.0, 1.0], np.float32)
    expected = (both_ways * weight[:, None]).mean()
    assert _divergence(tf.constant(one), tf.constant(other), tf.constant(weight)).numpy() == pytest.approx(
        expected, rel=1e-5
    )


def test_without_dropout_there_is_nothing_to_diverge(generation):
    expected, found = values(trained(generation)), values(trained(generation, r_drop=3.0))
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, atol=1e-5, rtol=1e-4, err_msg=path)


def apart(model):
    """How much two passes of training differ."""
    x, _ = batch()
    both = tf.function(lambda: (model(x, training=True), model(x, training=True)), autograph=False)
    return np.mean([_divergence(*both(), None).numpy() for _ in range(8)])


def test_passes_agree_more_where_they_are_asked_to(generation):
    plain = trained(generation, shape=DROPS, passes=15, scale=10.0)
    asked = trained(generation, shape=DROPS, passes=15, scale=10.0, r_drop=30.0)
    assert apart(asked) < 0.7 * apart(plain), "from weights whose answers depend on dropout"


@pytest.mark.parametrize("way", [{"r_drop": 1.0}, {"adversarial": 0.3}], ids=str)
@pytest.mark.parametrize("replicas", [1, 2], ids="{} replicas".format)
def test_a_step_is_the_same_however_the_batch_is_divided(generation, way, replicas):
    expected = values(trained(generation, **way))
    if "adversarial" in way:
        plain = values(trained(generation))
        assert max(np.abs(plain[path] - value).max() for path, value in expected.items()) > 1e-5
    found = values(trained(generation, make_strategy(replicas) if replicas > 1 else None, accumulate=2, **way))
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, atol=1e-5, rtol=1e-4, err_msg=path)


def test_texts_move_to_where_the_loss_is_worse(generation):
    model = compiled(generation)
    objective = Adversarial(model, 0.5)
    x, y = batch()
    moves = []
    call = objective._moved_call
    objective._moved_call = lambda ids, *a, **k: moves.append(objective._now.move) or call(ids, *a, **k)
    loss, _ = objective(x, tf.constant(y), None)
    plain = objective._plain(x, tf.constant(y), None)[0]
    assert float(loss) > float(plain) + 1e-4, "half of it is that of moved texts"
    table = keras_api.to_numpy(objective._table.weights[0])[x["input_ids"]] * x["attention_mask"][..., None]
    sizes = np.linalg.norm(moves[1].numpy().reshape(24, -1), axis=1)
    np.testing.assert_allclose(sizes, 0.5 * np.linalg.norm(table.reshape(24, -1), axis=1), rtol=1e-3)
    np.testing.assert_allclose(model(x), compiled(generation)(x), atol=1e-6, err_msg="nothing is left behind")


def test_models_without_a_table_of_texts_are_refused(generation):
    keras = keras_api.keras_module(generation)
    with pytest.raises(InputError, match="no table of embeddings"):
        Adversarial(keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)]), 0.1)
    tied = causal_lm(CausalLMConfig(**SMALL), generation=generation)
    tied.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    ids = np.ones((2, 8), np.int32)
    with pytest.raises(InputError, match="is called 2 times in a pass"):
        Adversarial(tied, 0.1)({"input_ids": ids, "attention_mask": ids}, tf.constant(ids), None)


def test_both_at_once_are_refused(generation):
    keras = keras_api.keras_module(generation)
    model = bert(TINY, 3, generation=generation)
    data = tf.data.Dataset.from_tensor_slices(batch()).batch(8)
    config = TrainConfig(epochs=1, batch_size=8, learning_rate=1e-3, r_drop=1.0)
    with pytest.raises(InputError, match="compute a model twice, as a whole"):
        fit(
            model, lambda number, skip: data, steps=3, config=config, network=lambda x: (x, None),
            compile_with=lambda o, jit_compile: model.compile(o, keras.losses.SparseCategoricalCrossentropy()),
        )  # fmt: skip


def noised(epoch, first=0, rate=0.3):
    x, y = batch(64)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8).skip(first)
    found = noisy(data, rate=rate, others=[1, 2], kept=(3, 4), seed=7, epoch=epoch, first=first)
    return [inputs["input_ids"].numpy() for inputs, _ in found]


def test_noise_is_another_in_every_pass_and_the_same_again():
    x, _ = batch(64)
    plain, one = x["input_ids"], np.concatenate(noised(0))
    changed = one != plain
    assert set(one[changed]) == {1, 2}
    assert not changed[(plain == 3) | (plain == 4) | (x["attention_mask"] == 0)].any()
    assert changed[x["attention_mask"] > 0].mean() == pytest.approx(0.3, abs=0.05)
    np.testing.assert_array_equal(np.concatenate(noised(0)), one)
    np.testing.assert_array_equal(np.concatenate(noised(tf.Variable(0, dtype=tf.int64))), one)
    np.testing.assert_array_equal(np.concatenate(noised(0, first=3)), one[24:], "a pass that goes on")
    assert (np.concatenate(noised(1)) != one).mean() > 0.2
    assert (one[:8] != one[8:16]).mean() > 0.2, "and in every batch"


def test_noise_on_inputs_of_other_names_without_a_mask():
    ids = np.full((8, 6), 5, np.int64)
    data = tf.data.Dataset.from_tensor_slices(({"tokens": ids}, ids[:, 0])).batch(4)
    found = noisy(data, rate=0.5, others=[9], kept=(), seed=0, epoch=0, ids="tokens", mask="attention_mask")
    noised = np.concatenate([inputs["tokens"] for inputs, _ in found])
    assert noised.dtype == np.int64 and set(noised.ravel()) == {5, 9}


@pytest.fixture
def recipe(tiny_recipe, tmp_path):
    def make(training):
        text = tiny_recipe().read_text()
        text = text[: text.index("[[variants]]")] + text[text.index("[measure]") :]
        path = tmp_path / "recipe.toml"
        path.write_text(text.replace("epochs = 4\n", f"epochs = 1\n{training}\n"))
        return Recipe.load(path)

    return make


@pytest.mark.parametrize("training", ["r_drop = 1.0\ntoken_noise = 0.1", "adversarial = 0.1"])
def test_recipes_have_them(recipe, tmp_path, training):
    built = build(recipe(training), tmp_path / "run", log=lambda line: None)
    assert np.isfinite(built.curves["baseline"]["loss"]).all()


@pytest.mark.parametrize(
    "lines", ["r_drop = 1.0\nadversarial = 0.1", "r_drop = 1.0\ngradient_checkpointing = true"]
)
def test_recipes_give_one_of_them(recipe, lines):
    with pytest.raises(InputError, match="give one of r_drop, adversarial and gradient_checkpointing"):
        recipe(lines)
