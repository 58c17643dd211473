import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfopt
from tfopt._keras import keras_api
from tfopt._keras.loading import load_model
from tfopt.callbacks import MagnitudePruning
from tfopt.compress.prune import Pruner, prunable
from tfopt.errors import InputError
from tfopt.numerics.masks import kept_count
from tfopt.schedules import ConstantSparsity, PolynomialDecay
from tfopt.train.strategy import scope


def zeros(model, names=("kernel",)):
    found = {}
    for weight in keras_api.weights(model):
        if weight.name in names:
            array = keras_api.to_numpy(weight.variable)
            found[weight.path] = array.size - np.count_nonzero(array)
    return found


def expected_zeros(model, sparsity, names=("kernel",)):
    sizes = {w.path: int(np.prod(w.variable.shape)) for w in keras_api.weights(model) if w.name in names}
    return {path: size - kept_count(size, sparsity) for path, size in sizes.items()}


def attention_model(keras):
    x = inputs = keras.layers.Input((6, 16), name="x")
    x = keras.layers.MultiHeadAttention(2, 8, name="mha")(x, x)
    x = keras.layers.EinsumDense("abc,cd->abd", (6, 12), name="einsum")(x)
    x = keras.Sequential([keras.layers.Dense(8, name="inner"), keras.layers.Flatten()], name="nested")(x)
    return keras.Model(inputs, keras.layers.Dense(3, name="head")(x))


DATA = np.random.default_rng(0).standard_normal((48, 6, 16)).astype(np.float32)
LABELS = np.random.default_rng(1).integers(0, 3, 48)


def train(keras, model, callback, strategy=None, **compile_arguments):
    with scope(strategy):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(1e-2), loss, **compile_arguments)
    return model.fit(DATA, LABELS, batch_size=4, callbacks=[callback], verbose=0, shuffle=False).history


def test_callback_reaches_the_exact_sparsity_everywhere(keras, strategy, tmp_path):
    with scope(strategy):
        model = attention_model(keras)
    history = train(
        keras, model, MagnitudePruning(PolynomialDecay(0.1, 0.7, 2, end_step=10, frequency=3)), strategy=strategy
    )
    assert zeros(model) == expected_zeros(model, 0.7)
    assert len(zeros(model)) == 7  # four in the attention, the einsum, the nested one, the head
    assert history["sparsity"][-1] == pytest.approx(0.7, abs=0.01)
    if strategy is not None:
        for weight in keras_api.weights(model):
            copies = [c.numpy() for c in keras_api.tf_variable(weight.variable).values]
            np.testing.assert_array_equal(copies[0], copies[1])
    keras_api.save_model(model, tmp_path / "m.keras")
    assert zeros(load_model(tmp_path / "m.keras")) == expected_zeros(model, 0.7)


@pytest.mark.parametrize("arguments", [{"steps_per_execution": 5}, {"jit_compile": True}], ids=str)
def test_callback_with_rarer_hooks_and_compiled_steps(keras, arguments):
    model = attention_model(keras)
    train(keras, model, MagnitudePruning(PolynomialDecay(0.0, 0.5, 1, end_step=9, frequency=2)), **arguments)
    assert zeros(model) == expected_zeros(model, 0.5)


def test_only_the_zeros_differ_from_the_trained_weights(keras):
    """The kept weights train on: they are what the optimizer made of them, masks do not touch them."""
    keras.utils.set_random_seed(3)  # with some weights a gradient is lost in rounding
    model = attention_model(keras)
    before = {w.path: keras_api.to_numpy(w.variable) for w in keras_api.weights(model)}
    train(keras, model, MagnitudePruning(ConstantSparsity(0.5, 0, frequency=1)))
    for weight in keras_api.weights(model):
        after = keras_api.to_numpy(weight.variable)
        kept = after != 0
        assert np.abs(after - before[weight.path])[kept].min() > 0 or weight.name == "bias"


def test_masks_equal_the_toolkit_through_a_whole_training():
    from tensorflow_model_optimization.python.core.sparsity.keras import prune, pruning_callbacks, pruning_wrapper
    from tensorflow_model_optimization.python.core.sparsity.keras import pruning_schedule as toolkit

    def network():
        tf_keras.utils.set_random_seed(11)
        return tf_keras.Sequential([
            tf_keras.layers.Conv2D(4, 3, input_shape=(8, 8, 2), name="conv"), tf_keras.layers.Flatten(),
            tf_keras.layers.Dense(16, activation="relu", name="dense"), tf_keras.layers.Dense(3, name="head"),
        ])  # fmt: skip

    images = np.random.default_rng(0).standard_normal((64, 8, 8, 2)).astype(np.float32)
    labels = np.random.default_rng(1).integers(0, 3, 64)
    schedule = (0.2, 0.8, 2, 14, 3, 4)

    def fit(model, callback):
        model.compile(
            tf_keras.optimizers.SGD(0.05), tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        )
        model.fit(images, labels, batch_size=4, shuffle=False, verbose=0, callbacks=[callback])

    ours = network()
    fit(ours, MagnitudePruning(PolynomialDecay(*schedule)))
    theirs = prune.prune_low_magnitude(network(), toolkit.PolynomialDecay(*schedule))
    fit(theirs, pruning_callbacks.UpdatePruningStep())
    wrapped = {w.layer.name: w for w in theirs.layers if isinstance(w, pruning_wrapper.PruneLowMagnitude)}
    for name in ("conv", "dense", "head"):
        mask = wrapped[name].pruning_vars[0][1].numpy().astype(bool)
        np.testing.assert_array_equal(ours.get_layer(name).kernel.numpy() != 0, mask)
        np.testing.assert_allclose(
            ours.get_layer(name).kernel.numpy(), wrapped[name].layer.kernel.numpy() * mask, atol=1e-6
        )


def test_the_toolkits_own_schedule_objects_are_taken(keras):
    from tensorflow_model_optimization.python.core.sparsity.keras import pruning_schedule as toolkit

    model = attention_model(keras)
    train(keras, model, MagnitudePruning(toolkit.PolynomialDecay(0.0, 0.6, 0, 8, frequency=2)))
    assert zeros(model) == expected_zeros(model, 0.6)


def test_subclassed_models(keras):
    class Block(keras.layers.Layer):
        def __init__(self):
            super().__init__(name="block")
            self.parts = [keras.layers.Dense(8, name="one"), keras.layers.Dense(4, name="two")]

        def call(self, x):
            for part in self.parts:
                x = part(x)
            return x

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.block, self.flat, self.head = Block(), keras.layers.Flatten(), keras.layers.Dense(3, name="head")

        def call(self, x):
            return self.head(self.flat(self.block(x)))

    model = Model()  # has no weights before the first batch
    train(keras, model, MagnitudePruning(ConstantSparsity(0.5, 0, frequency=1)))
    assert len(zeros(model)) == 3 and zeros(model) == expected_zeros(model, 0.5)


def test_a_second_fit_goes_on_where_the_first_ended(keras):
    model = attention_model(keras)
    callback = MagnitudePruning(PolynomialDecay(0.0, 0.8, 0, end_step=20, frequency=2))
    train(keras, model, callback)  # 12 steps
    assert 0 < sum(zeros(model).values()) < sum(expected_zeros(model, 0.8).values())
    model.fit(DATA, LABELS, batch_size=4, callbacks=[callback], verbose=0)
    assert zeros(model) == expected_zeros(model, 0.8)


@pytest.mark.parametrize("same_callback", [True, False], ids=["same callback", "new callback"])
def test_zeros_stay_between_two_fits_however_rare_the_updates(keras, same_callback):
    model = attention_model(keras)
    schedule = ConstantSparsity(0.5, 0, frequency=1000)
    callback = MagnitudePruning(schedule)
    train(keras, model, callback)
    pattern = {w.path: keras_api.to_numpy(w.variable) == 0 for w in keras_api.weights(model) if w.name == "kernel"}
    callback = callback if same_callback else MagnitudePruning(schedule)
    model.fit(DATA, LABELS, batch_size=4, callbacks=[callback], verbose=0)
    for weight in keras_api.weights(model):
        if weight.name == "kernel":
            np.testing.assert_array_equal(keras_api.to_numpy(weight.variable) == 0, pattern[weight.path])


def said_by_tfopt(caplog):
    return [record.getMessage() for record in caplog.records if record.name.startswith("tfopt")]


@pytest.fixture
def trained_file(keras, tmp_path):
    """A model saved with its optimizer, which has counted 24 steps."""
    model = attention_model(keras)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(DATA, LABELS, batch_size=4, epochs=2, verbose=0)
    model.save(tmp_path / "m.keras")
    return tmp_path / "m.keras"


def test_steps_count_from_the_start_of_fit_also_for_a_model_from_a_file(keras, trained_file, caplog):
    """The optimizer's own count is past the schedule's end, and nothing would be pruned, without a word."""
    model = keras.models.load_model(trained_file)
    assert keras_api.learning_step(model) == 24
    callback = MagnitudePruning(PolynomialDecay(0.0, 0.8, 0, end_step=10, frequency=2))
    model.fit(DATA, LABELS, batch_size=4, callbacks=[callback], verbose=0)
    assert zeros(model) == expected_zeros(model, 0.8) and not said_by_tfopt(caplog)


def test_resume_counts_what_the_optimizer_counted_before(keras, trained_file, caplog):
    model = keras.models.load_model(trained_file)
    callback = MagnitudePruning(PolynomialDecay(0.0, 0.8, 0, end_step=48, frequency=2), resume=True)
    model.fit(DATA, LABELS, batch_size=4, callbacks=[callback], verbose=0)  # steps 24 to 36
    assert callback._follower.done == 36 and sum(zeros(model).values()) == sum(
        expected_zeros(model, 0.7875).values()
    )
    assert "below the schedule's 0.8000, which is reached at its end_step 48" in caplog.text
    model.fit(DATA, LABELS, batch_size=4, callbacks=[callback], verbose=0)
    assert zeros(model) == expected_zeros(model, 0.8)


@pytest.mark.parametrize(
    ("schedule", "resume", "says"),
    [
        (
            PolynomialDecay(0.0, 0.8, 0, end_step=10),
            True,
            "it ends at step 10, and this training goes on at step 24",
        ),
        (
            PolynomialDecay(0.0, 0.8, 100, end_step=200),
            False,
            "it begins at step 100, and this training ends at step 12",
        ),
        (ConstantSparsity(0.8, 50), True, "it begins at step 50, and this training ends at step 36"),
    ],
)
def test_a_schedule_that_cannot_act_says_so(keras, trained_file, caplog, schedule, resume, says):
    model = keras.models.load_model(trained_file)
    model.fit(DATA, LABELS, batch_size=4, callbacks=[MagnitudePruning(schedule, resume=resume)], verbose=0)
    assert f"prunes nothing in this training: {says}" in caplog.text
    assert "training ended at step" in caplog.text and "below the schedule's 0.8000" in caplog.text
    assert not any(zeros(model).values())


def test_a_schedule_cut_short_is_said(keras, caplog):
    from tensorflow_model_optimization.python.core.sparsity.keras import pruning_schedule as toolkit

    for schedule in (
        PolynomialDecay(0.0, 0.8, 0, end_step=1000, frequency=2),
        toolkit.PolynomialDecay(0.0, 0.8, 0, 1000),
    ):
        caplog.clear()
        train(keras, attention_model(keras), MagnitudePruning(schedule))
        assert "below the schedule's 0.8000, which is reached at its end_step 1000" in caplog.text
    caplog.clear()
    train(keras, attention_model(keras), MagnitudePruning(PolynomialDecay(0.0, 0.8, 0, end_step=12, frequency=5)))
    assert not said_by_tfopt(caplog)


@pytest.mark.parametrize("structure", ["unstructured", "2:4", "4x1", "1x8"])
def test_one_shot_structures(keras, structure):
    model = tfopt.prune(attention_model(keras), 0.5, structure=structure)
    query = keras_api.to_numpy(next(w for w in keras_api.weights(model) if w.path == "mha/query/kernel").variable)
    kept = query.reshape(16, 16) != 0
    assert kept.mean() == 0.5
    if structure == "2:4":
        assert (kept.reshape(4, 4, 16).sum(axis=1) == 2).all()
    if structure == "4x1":
        assert {int(n) for n in kept.reshape(4, 4, 16).sum(axis=1).ravel()} == {0, 4}


def test_global_scope_ranks_layers_against_each_other(keras):
    model = attention_model(keras)
    head = next(w for w in keras_api.weights(model) if w.path == "head/kernel")
    head.variable.assign(keras_api.to_numpy(head.variable) * 1e-4)
    tfopt.prune(model, 0.5, scope="global")
    assert not keras_api.to_numpy(head.variable).any()
    sizes = sum(int(np.prod(w.variable.shape)) for w in keras_api.weights(model) if w.name == "kernel")
    assert sum(zeros(model).values()) == sizes - kept_count(sizes, 0.5)


def test_an_n_of_m_pattern_through_fit(keras):
    with pytest.raises(InputError, match="structure 2:4 has sparsity 0.5, got 0.9"):
        MagnitudePruning(PolynomialDecay(0.0, 0.9, 0, end_step=8), structure="2:4")
    model = attention_model(keras)
    train(keras, model, MagnitudePruning(ConstantSparsity(0.5, 2, frequency=2), structure="2:4", exclude="head"))
    inner = keras_api.to_numpy(
        next(w for w in keras_api.weights(model) if w.path == "nested/inner/kernel").variable
    )
    assert ((inner.reshape(3, 4, 8) != 0).sum(axis=1) == 2).all()


def test_include_and_exclude_by_name_type_and_class(keras):
    def pruned(**choice):
        model = tfopt.prune(attention_model(keras), 0.5, **choice)
        return {path for path, count in zeros(model).items() if count}

    mha = {f"mha/{part}/kernel" for part in ("query", "key", "value", "attention_output")}
    assert pruned(include="MultiHeadAttention") == mha
    assert pruned(include=keras.layers.MultiHeadAttention, exclude="*/key") == mha - {"mha/key/kernel"}
    assert pruned(exclude=["mha", "EinsumDense", "head"]) == {"nested/inner/kernel"}
    with pytest.raises(InputError, match="'haed' matches no layer.*did you mean 'head'"):
        pruned(include="haed")


def test_embeddings_are_pruned_only_when_asked_for(make_bert):
    model = make_bert()
    _, skipped = prunable(model)
    assert {s.path: s.reason for s in skipped}["word_embeddings/embeddings"].startswith(
        "Embedding.embeddings is no kernel"
    )
    tfopt.prune(model, 0.5, include="word_embeddings")
    assert zeros(model, ("embeddings",))["word_embeddings/embeddings"] == 300 * 32 // 2
    assert not any(zeros(model).values())


def test_one_model_shared_by_two_places_counts_once(keras):
    shared = keras.layers.Dense(16, name="shared")
    inputs = keras.layers.Input((16,))
    model = keras.Model(inputs, shared(shared(inputs)))
    assert len(Pruner(model, structure="unstructured", scope="layer").weights) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"sparsity": 1.2}, r"sparsity must be in \[0, 1\), got 1.2"),
        ({"sparsity": 0.9, "structure": "2:4"}, "structure 2:4 has sparsity 0.5, got 0.9"),
        ({"sparsity": 0.5, "structure": "rows"}, "structure must be"),
        ({"sparsity": 0.5, "scope": "world"}, "scope must be 'layer' or 'global', got 'world'"),
        ({"sparsity": 0.5, "structure": "2:4", "scope": "global"}, "cannot be combined"),
    ],
)
def test_bad_arguments_leave_the_model_as_it_was(keras, arguments, says):
    model = attention_model(keras)
    with pytest.raises(InputError, match=says):
        tfopt.prune(model, **arguments)
    assert not any(zeros(model).values())


def test_nan_weights_are_named_and_nothing_is_touched(keras):
    model = attention_model(keras)
    head = next(w for w in keras_api.weights(model) if w.path == "head/kernel").variable
    head.assign(np.full(head.shape, np.nan))
    with pytest.raises(InputError, match="'head/kernel' holds NaN"):
        tfopt.prune(model, 0.5)
    assert not any(v for k, v in zeros(model).items() if k != "head/kernel")


def test_things_that_are_no_model_are_refused():
    with pytest.raises(InputError, match="must be a tf_keras or Keras 3 model, got dict"):
        tfopt.prune({}, 0.5)
    with pytest.raises(InputError, match="has no weights yet"):
        tfopt.prune(tf_keras.Sequential([tf_keras.layers.Dense(3)]), 0.5)
    inputs = tf_keras.Input((3,))
    with pytest.raises(InputError, match="nothing to prune"):
        tfopt.prune(tf_keras.Model(inputs, tf_keras.layers.Flatten()(inputs)), 0.5)


def test_infinite_and_nan_weights_become_zero_under_a_mask():
    from tfopt.numerics.masked_assign import MaskedAssign

    variable = tf.Variable([np.nan, np.inf, 1.0])
    assign = MaskedAssign([variable])
    assign.set_masks([np.array([False, False, True])])
    assign()
    np.testing.assert_array_equal(variable.numpy(), [0, 0, 1])


@pytest.mark.parametrize("masks", [[np.ones((1, 4), bool)], [np.ones((3, 4), bool)] * 2, []])
def test_masks_of_other_shapes_are_refused(masks):
    from tfopt.numerics.masked_assign import MaskedAssign

    assign = MaskedAssign([tf.Variable(np.ones((3, 4), np.float32))])
    with pytest.raises(InputError, match="masks must have the shapes of the weights"):
        assign.set_masks(masks)
