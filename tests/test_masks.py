import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tensorflow_model_optimization.python.core.sparsity.keras import pruning_impl, pruning_schedule, pruning_utils

from tfopt.errors import InputError
from tfopt.numerics.masks import SparsityPattern, kept_count, largest, magnitude_masks, parse_structure

matrices = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=17),
    elements=st.floats(-8, 8, width=32),
)  # fmt: skip
sparsities = st.floats(0, 0.99)


def toolkit_mask(weight, sparsity, blocks=(1, 1)):
    variable = tf.Variable(weight)
    impl = pruning_impl.Pruning(
        lambda: 0, [(variable, None, None)], pruning_schedule.ConstantSparsity(sparsity, 0), blocks, "AVG"
    )
    return impl._maybe_update_block_mask(variable)[1].numpy().astype(bool)


@given(matrices, sparsities)
def test_exactly_the_asked_number_stays_and_nothing_larger_goes(weight, sparsity):
    (mask,) = magnitude_masks([weight], sparsity)
    kept = kept_count(weight.size, sparsity)
    assert mask.sum() == kept
    if kept < weight.size:
        assert np.abs(weight)[mask].min() >= np.abs(weight)[~mask].max()


@given(st.lists(matrices, min_size=1, max_size=4), sparsities)
def test_global_ranking_is_one_ranking(weights, sparsity):
    masks = magnitude_masks(weights, sparsity, across=True)
    flat = np.concatenate([np.abs(w).ravel() for w in weights])
    kept = np.concatenate([m.ravel() for m in masks])
    assert kept.sum() == kept_count(flat.size, sparsity)
    if not kept.all():
        assert flat[kept].min() >= flat[~kept].max()


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(1, 40), sparsities, st.integers(0, 10**6))
def test_unstructured_equals_the_toolkit(rows, columns, sparsity, seed):
    # Distinct magnitudes: where several equal the threshold, the toolkit keeps more than was asked for.
    weight = np.random.default_rng(seed).permutation(rows * columns).reshape(rows, columns).astype(np.float32) + 1
    np.testing.assert_array_equal(magnitude_masks([weight], sparsity)[0], toolkit_mask(weight, sparsity))


@settings(max_examples=40)
@given(
    # Whole blocks: at a ragged edge the toolkit pools windows that are shifted against those it removes,
    # and it fails where one block covers a whole axis.
    st.integers(1, 4).map(lambda n: 12 * n),
    st.integers(1, 4).map(lambda n: 12 * n),
    sparsities,
    st.sampled_from([(4, 1), (1, 4), (2, 3)]),
    st.integers(0, 99),
)
def test_blocks_equal_the_toolkit(rows, columns, sparsity, blocks, seed):
    weight = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    ours = magnitude_masks([weight], sparsity, SparsityPattern("block", *blocks))[0]
    np.testing.assert_array_equal(ours, toolkit_mask(weight, sparsity, blocks))


@settings(max_examples=40)
@given(
    st.sampled_from([(24, 5), (7, 3), (3, 3, 8, 4), (2, 2, 5, 3)]),
    st.sampled_from([(2, 4), (1, 4)]),
    st.integers(0, 99),
)
def test_n_of_m_equals_the_toolkit(shape, zeros_of, seed):
    weight = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    zeros, group = zeros_of
    ours = magnitude_masks([weight], 0.5, SparsityPattern("n:m", group - zeros, group))[0]
    arranged = pruning_utils.weights_rearrange(tf.constant(weight))
    theirs = pruning_utils.m_by_n_sparsity_mask_prepare(
        pruning_utils.generate_m_by_n_mask(arranged, zeros_of), tf.constant(weight).shape
    )
    np.testing.assert_array_equal(ours, theirs.numpy().astype(bool))


def test_equal_magnitudes_keep_the_exact_count():
    assert largest(np.ones(10, np.float32), 4).tolist() == [True] * 4 + [False] * 6


@pytest.mark.parametrize("text", ["2:2", "4:2", "0:4", "0x4", "dense", "2-4", ""])
def test_a_structure_that_is_none_is_refused(text):
    with pytest.raises(InputError, match="structure must be"):
        parse_structure(text)
