"""Matrices as two factors: the numerics against NumPy, and models that compute the same with full rank."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import tfopt
from tfopt._keras import keras_api
from tfopt._keras.keras_io import inputs_of
from tfopt._keras.loading import load_model
from tfopt.compress.low_rank import splittable
from tfopt.errors import InputError
from tfopt.numerics.low_rank import decompose

from .structured_models import attention, convolutions, encoder, llama
from .test_shrink import outputs, parameters, randomized, samples


@hypothesis.given(
    rows=st.integers(1, 12), columns=st.integers(1, 12), seed=st.integers(0, 9), weighted=st.booleans()
)
def test_factors_are_the_best_of_their_rank(rows, columns, seed, weighted):
    rng = np.random.default_rng(seed)
    matrix, inputs = (
        rng.standard_normal((rows, columns)),
        rng.standard_normal((40, rows)) * rng.uniform(0.1, 3, rows),
    )
    found = decompose(matrix, inputs.T @ inputs if weighted else None)
    assert (np.diff(found.energy) >= -1e-12).all() and found.energy[-1] == pytest.approx(1)
    measured = inputs if weighted else np.eye(rows)
    best = np.linalg.svd(measured @ matrix, compute_uv=False)
    for rank in range(1, min(rows, columns) + 1):
        left, right = found.of_rank(rank)
        assert left.shape == (rows, rank) and right.shape == (rank, columns)
        error = np.linalg.norm(measured @ (left @ right - matrix))
        assert error == pytest.approx(np.sqrt((best[rank:] ** 2).sum()), rel=1e-2, abs=2e-3 * np.linalg.norm(best))
        assert found.rank_of(float(found.energy[rank - 1])) <= rank


def low_rank_weights(model, rank=2):
    """Gives every matrix a small rank, so that nothing is lost by splitting it."""
    rng = np.random.default_rng(0)
    for one in splittable(model)[0]:
        rows, columns = one.matrix.shape
        value = rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, columns)) / np.sqrt(rows)
        variable = getattr(one.layer, one.weight)
        variable.assign(value.reshape(variable.shape).astype(np.float32))


@pytest.mark.parametrize("make", [encoder, llama, attention, convolutions], ids=lambda m: m.__name__)
def test_matrices_of_low_rank_are_split_without_loss(make, keras, tmp_path):
    model = randomized(make(keras))
    low_rank_weights(model)
    named = samples(model)
    expected = outputs(model, named)
    smaller = tfopt.factorize(model, energy=1.0 - 1e-9)
    assert parameters(smaller) < 0.9 * parameters(model)
    found = outputs(smaller, named)
    np.testing.assert_allclose(found, expected, atol=1e-4 * max(1, np.abs(expected).max()))
    assert {type(x).__module__.partition(".")[0] for _, x in keras_api.walk(smaller)} == {keras.__name__}
    keras_api.save_model(smaller, tmp_path / "m.keras")
    np.testing.assert_allclose(outputs(load_model(tmp_path / "m.keras"), named), found, rtol=1e-4, atol=1e-4)
    lengths = {encoder: [6], llama: [8, 24]}.get(make)
    artifact = tfopt.export(smaller, tmp_path / "m.tflite", format="tflite", lengths=lengths)
    assert artifact.max_abs_error < 1e-3 * max(1, np.abs(found).max())


def test_models_that_generate_still_do(keras):
    model = randomized(llama(keras))
    smaller = tfopt.factorize(model, rank=6)
    ids = np.arange(1, 9, dtype=np.int32)[None]
    recomputed = outputs(smaller, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    for runtime, bits in (("eager", None), ("xla", None), ("xla", 8)):
        with tfopt.Generator.load(smaller, runtime=runtime, bits=bits).decoder.open([0]) as session:
            found = session.extend(ids, every=True)
        limit = 1e-3 if bits is None else 0.1 * np.abs(recomputed).max()
        np.testing.assert_allclose(found, recomputed, atol=limit)


def test_activations_decide_what_is_kept(keras):
    """One input never varies much; with data its row of the matrix counts little."""
    layers = keras.layers
    inputs = layers.Input((8,))
    model = keras.Model(inputs, layers.Dense(8, name="d")(inputs))
    rng = np.random.default_rng(0)
    data = rng.standard_normal((200, 8)).astype(np.float32)
    data[:, 0] *= 1e-3
    kernel = rng.standard_normal((8, 8)).astype(np.float32)
    kernel[0] *= 20
    model.get_layer("d").kernel.assign(kernel)
    name = next(iter(inputs_of(model).specs))
    expected = data @ kernel
    plain = outputs(tfopt.factorize(model, rank=3), {name: data})
    weighted = outputs(tfopt.factorize(model, rank=3, representative={name: data}), {name: data})
    assert np.square(weighted - expected).mean() < 0.8 * np.square(plain - expected).mean()


def test_a_budget_is_met_and_spent_where_it_costs_least(keras):
    model = randomized(encoder(keras))
    low_rank_weights(model, rank=3)
    total = 4 * parameters(model)
    smaller = tfopt.factorize(model, max_bytes=int(0.6 * total))
    assert 0.4 * total < 4 * parameters(smaller) <= 0.6 * total
    named = samples(model)
    np.testing.assert_allclose(outputs(smaller, named), outputs(model, named), atol=1e-3)
    with pytest.raises(InputError, match="the weights take at least .* bytes at rank 1, got a budget of 100"):
        tfopt.factorize(model, max_bytes=100)
    with pytest.raises(InputError, match="bytes already, got a budget of"):
        tfopt.factorize(model, max_bytes=2 * total)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "give one of rank, energy and max_bytes"), ({"rank": 2, "energy": 0.5}, "give one of rank"),
        ({"energy": 1.5}, r"energy must be in \(0, 1\], got 1.5"), ({"rank": 0}, "must be 1 or more, got 0"),
        ({"rank": 1000}, r"rank 1000 makes .* no smaller; it must be at most"),
        ({"rank": {"layer_0_output/kernel": 30}}, r"rank 30 makes 'layer_0_output/kernel' \(64 x 32\) no smaller; .* 21"),
        ({"rank": {"nothing": 3}}, "no matrix 'nothing' to split; there are"),
    ],
)  # fmt: skip
def test_bad_arguments(keras, arguments, says):
    with pytest.raises(InputError, match=says):
        tfopt.factorize(randomized(encoder(keras)), **arguments)


def test_what_stays_whole_says_why(keras):
    _, skipped = splittable(attention(keras))
    assert any("of class MultiHeadAttention, which makes its layers itself" in s.reason for s in skipped)
    assert any("depthwise" in s.path.lower() for s in splittable(convolutions(keras))[1])
    assert any("models that generate" in s.reason for s in splittable(llama(keras))[1])


def test_what_was_split_is_not_split_again_under_the_same_name(keras):
    inputs = keras.layers.Input((32,))
    model = keras.Model(inputs, keras.layers.Dense(32, name="wide")(inputs))
    once = tfopt.factorize(model, rank=12)
    with pytest.raises(InputError, match="no matrix 'wide/kernel' to split; there are wide_low/kernel"):
        tfopt.factorize(once, rank={"wide/kernel": 4})
    assert tfopt.factorize(once, rank=4).count_params() < once.count_params()


def test_matrices_of_models_inside_a_model(keras):
    """Two nested models may have layers of the same name."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    inputs, x = layers.Input((32,), name="x"), None
    parts = [
        keras.Sequential([layers.Input((32,)), layers.Dense(32, name="wide")], name=name) for name in ("one", "two")
    ]
    x = layers.Add()([part(inputs) for part in parts])
    x = parts[0](keras.Sequential([layers.Input((32,)), parts[1]], name="deep")(x))  # shared, and two levels down
    model = keras.Model(inputs, layers.Dense(4)(x))
    value = np.random.default_rng(0).standard_normal((16, 32)).astype(np.float32)
    found, _ = splittable(model)
    assert {"one/wide/kernel", "two/wide/kernel"} <= {f.path for f in found}
    smaller = tfopt.factorize(model, rank={"one/wide/kernel": 8}, representative={"x": value})
    assert smaller.count_params() == model.count_params() - 32 * 32 + 2 * 32 * 8
    close = tfopt.factorize(model, rank={"one/wide/kernel": 15, "two/wide/kernel": 15}, representative={"x": value})
    error = np.abs(np.asarray(close(value)) - np.asarray(model(value)))
    assert error.max() < 0.5 * np.abs(np.asarray(model(value))).max()


def test_what_saves_nothing_is_a_warning(keras, caplog):
    model = randomized(encoder(keras))
    same = tfopt.factorize(model, energy=1.0, include="layer_0_output")
    assert "makes no matrix of model" in caplog.text and same.count_params() == model.count_params()


def test_a_lambda_is_refused_by_name(keras):
    inputs = keras.layers.Input((32,))
    doubled = keras.layers.Lambda(lambda x: x * 2, name="doubled", output_shape=(32,))(inputs)
    model = keras.Model(inputs, keras.layers.Dense(32)(doubled))
    if keras.__name__ == "keras":
        with pytest.raises(InputError, match="layer 'doubled' of class Lambda cannot be made anew"):
            tfopt.factorize(model, rank=4)
    else:
        tfopt.factorize(model, rank=4)


def test_names_of_layers_may_hold_strokes():
    keras = keras_api.keras_module("tf_keras")  # Keras 3 refuses them
    inputs = keras.Input((16,), name="x")
    x = inputs
    for name in ("block/expand", "block_1/expand", "block/project"):
        x = keras.layers.Dense(16, name=name)(x)
    model = keras.Model(inputs, x)
    given = np.random.default_rng(0).standard_normal((4, 16)).astype(np.float32)
    smaller = tfopt.factorize(model, rank=4)
    assert [layer.name for layer in smaller.layers[1:3]] == ["block/expand_low", "block/expand"]
    assert smaller.count_params() < model.count_params() and np.isfinite(smaller(given).numpy()).all()
