"""Properties of rounding to grids, in numbers."""

import numpy as np
import pytest
import tensorflow as tf

from tfopt.numerics import fake_quant as fq
from tfopt.numerics.grids import Layout, WeightSpec
from tfopt.quantization.record import as_matrix, from_matrix

SHAPES = {  # shape -> layout
    (64, 12): Layout((0,)), (3, 3, 5, 8): Layout((0, 1, 2), False), (3, 3, 6, 2): Layout((0, 1), False),
    (3, 3, 4, 5): Layout((0, 1, 3), False), (2, 32, 6): Layout((0, 1)), (6, 2, 32): Layout((1, 2)),
}  # fmt: skip


def weight(shape, seed=0):
    return tf.constant(np.random.default_rng(seed).standard_normal(shape), tf.float32)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("granularity", ["tensor", "channel", 32])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("shape", "layout"), SHAPES.items(), ids=str)
def test_rounding(shape, layout, bits, granularity, symmetric):
    if isinstance(granularity, int) and (not layout.blocks or bits > 4 or not symmetric):
        return  # blocks are for few bits, symmetric, and axes that can be cut
    w, spec = weight(shape), WeightSpec(bits, granularity, symmetric)
    scale, zero = fq.scale_and_zero(w, layout, spec)
    integers = fq.to_integers(w, layout, spec, scale=scale, zero=zero).numpy()
    assert integers.min() >= spec.smallest and integers.max() <= spec.largest
    assert (integers == np.rint(integers)).all()
    rounded = fq.fake_quant_weight(w, layout, spec)
    step = np.broadcast_to(np.abs(np.asarray(scale)).max(), shape)
    assert (np.abs(rounded - w) <= step * 0.5 * 1.02 + 1e-6).all()
    # What training simulated is what the integers mean, to the last bit.
    values, _ = fq.grouped(tf.constant(integers), layout, granularity)
    np.testing.assert_array_equal(rounded, tf.reshape((values - zero) * scale, shape))
    if symmetric and granularity != 32:  # block scales are cut to a mantissa of 8 bits, and would be cut again
        np.testing.assert_allclose(fq.fake_quant_weight(rounded, layout, spec), rounded, atol=1e-6)


@pytest.mark.parametrize(("shape", "layout"), SHAPES.items(), ids=str)
def test_matrix_form_and_back(shape, layout):
    w = weight(shape).numpy()
    matrix = as_matrix(w, layout)
    outputs = np.prod([n for axis, n in enumerate(shape) if axis not in layout.inputs])
    assert matrix.shape == (outputs, w.size // outputs)
    np.testing.assert_array_equal(from_matrix(matrix, shape, layout), w)


def test_zeros_stay_zeros_and_get_a_scale():
    w = tf.zeros((8, 4))
    assert not np.any(fq.fake_quant_weight(w, Layout((0,)), WeightSpec(4)))
    scale, _ = fq.scale_and_zero(w, Layout((0,)), WeightSpec(4))
    assert (scale.numpy() == 1).all()


def test_gradients_pass_straight_through():
    w = weight((16, 4))
    with tf.GradientTape() as tape:
        tape.watch(w)
        loss = tf.reduce_sum(fq.fake_quant_weight(w, Layout((0,)), WeightSpec(3)) * 3.0)
    np.testing.assert_array_equal(tape.gradient(loss, w), np.full((16, 4), 3.0))


def test_learned_step_has_the_gradient_of_the_paper():
    """Esser et al., equation 3, written out one weight at a time."""
    layout, spec = Layout((0,)), WeightSpec(3)
    w, step = weight((40, 2)), tf.constant([[0.4, 0.2]])
    with tf.GradientTape() as tape:
        tape.watch([w, step])
        loss = tf.reduce_sum(
            fq.fake_quant_learned(w, step, layout, spec=spec) * tf.range(80.0).numpy().reshape(40, 2)
        )
    to_w, to_step = tape.gradient(loss, [w, step])
    expected = np.zeros(2)
    for i in range(40):
        for j in range(2):
            upstream, ratio = 2 * i + j, w.numpy()[i, j] / step.numpy()[0, j]
            inside = -3 <= ratio <= 3
            assert to_w.numpy()[i, j] == (upstream if inside else 0)
            expected[j] += upstream * (np.rint(ratio) - ratio if inside else np.sign(ratio) * 3)
    np.testing.assert_allclose(to_step.numpy()[0], expected / np.sqrt(40 * 3), rtol=1e-4)


def test_clip_search_lowers_the_error_of_heavy_tails():
    w = tf.constant(np.random.default_rng(0).standard_t(3, (512, 8)), tf.float32)
    layout, spec = Layout((0,)), WeightSpec(4)
    clip = fq.best_clip(w, layout, spec)
    plain, clipped = (fq.fake_quant_weight(w, layout, spec, clip=c) for c in (1.0, clip))
    before, after = (np.mean((r - w) ** 2, axis=0) for r in (plain, clipped))
    assert (after <= before).all() and after.mean() < 0.9 * before.mean()


@pytest.mark.parametrize("symmetric", [True, False])
def test_rows_are_rounded_one_by_one(symmetric):
    x = weight((4, 3, 16)) * [[[1.0]], [[10.0]], [[0.1]], [[0.0]]]
    rounded = fq.fake_quant_rows(x, (-1,), 8, symmetric=symmetric).numpy()
    for row, found in zip(x.numpy().reshape(-1, 16), rounded.reshape(-1, 16), strict=True):
        low, high = min(row.min(), 0), max(row.max(), 0)
        step = (np.abs(row).max() / 127 if symmetric else (high - low) / 255) or 1.0
        assert np.abs(found - row).max() <= step / 2 * 1.001
        assert len(np.unique(np.rint(found / step))) == len(np.unique(found))


@pytest.mark.parametrize(("bits", "symmetric"), [(8, False), (8, True), (16, True)])
def test_fixed_range_clips_and_keeps_zero(bits, symmetric):
    high = 3.0 if symmetric else 2.0
    x = tf.constant([-9.0, -3.0, -0.001, 0.0, 1.234, 2.0, 9.0])
    found = fq.fake_quant_range(x, tf.constant(-3.0), tf.constant(high), bits=bits, symmetric=symmetric).numpy()
    assert found[3] == 0 and found[0] == found[1] and abs(found[-1] - high) < 0.02
    assert abs(found[4] - 1.234) <= 5 / (2**bits - 1) / 2 * 1.3
