import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorflow_model_optimization.python.core.sparsity.keras import pruning_schedule as toolkit

from tfopt.errors import InputError
from tfopt.schedules import ConstantSparsity, PolynomialDecay

sparsities = st.floats(0, 0.99)


@given(
    sparsities, sparsities, st.integers(0, 20), st.integers(1, 30), st.integers(1, 7), st.sampled_from([1, 2, 3])
)
def test_polynomial_equals_the_toolkit(initial, final, begin, turns, frequency, power):
    end = begin + turns * frequency  # where the toolkit's last update falls on its end step
    arguments = (initial, final, begin, end, power, frequency)
    ours, theirs = PolynomialDecay(*arguments), toolkit.PolynomialDecay(*arguments)
    for step in range(0, end + 10, 3):
        update, sparsity = theirs(step)
        assert ours(step)[0] == bool(update)
        assert ours(step)[1] == pytest.approx(float(sparsity), abs=1e-5)


@given(sparsities, st.integers(0, 20), st.one_of(st.just(-1), st.integers(20, 60)), st.integers(1, 7))
def test_constant_equals_the_toolkit(target, begin, end, frequency):
    ours = ConstantSparsity(target, begin, end, frequency=frequency)
    theirs = toolkit.ConstantSparsity(target, begin, end, frequency)
    for step in range(70):
        if step != end:  # ours also updates at an end step that is no multiple of the frequency
            assert ours(step)[0] == bool(theirs(step)[0])
        assert ours(step)[1] == target


def test_the_final_sparsity_is_reached_at_an_end_step_off_the_beat():
    update, sparsity = PolynomialDecay(0.0, 0.8, 0, end_step=1050, frequency=100)(1050)
    assert update and sparsity == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: PolynomialDecay(0, 1.2, 0, end_step=10), r"final_sparsity must be in \[0, 1\), got 1.2"),
        (lambda: PolynomialDecay(-0.1, 0.5, 0, end_step=10), r"initial_sparsity must be in \[0, 1\), got -0.1"),
        (lambda: PolynomialDecay(0, 0.5, 10, end_step=5), "begin 10, end 5"),
        (lambda: PolynomialDecay(0, 0.5, 0, end_step=-1), "end_step of PolynomialDecay"),
        (lambda: ConstantSparsity(1.0, 0), r"target_sparsity must be in \[0, 1\), got 1.0"),
        (lambda: ConstantSparsity(float("nan"), 0), "got nan"),
        (lambda: ConstantSparsity(0.5, -3), "begin_step must be 0 or more, got -3"),
        (lambda: ConstantSparsity(0.5, 0, frequency=0), "frequency must be 1 or more, got 0"),
    ],
)
def test_bad_values_are_named(make, says):
    with pytest.raises(InputError, match=says):
        make()
