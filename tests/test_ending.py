"""Signals that wait for the step that is under way, and minutes that are over."""

import signal
import time

import pytest

from tfopt.train.ending import Ending


@pytest.fixture
def told():
    """The signals that the program was told of."""
    found = []
    before = {
        n: signal.signal(n, lambda number, frame: found.append(number)) for n in (signal.SIGTERM, signal.SIGINT)
    }
    yield found
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_waits_and_the_second_does_not(told, number):
    with Ending(None, "train", holds_signals=True) as ending:
        assert ending.wanted == (False, False)
        signal.raise_signal(number)
        assert ending.wanted == (False, True) and not told
        signal.raise_signal(signal.SIGTERM)
        assert told == [number]
        signal.raise_signal(number)
    assert told == [number, number], "nothing is held once one was passed on"


def test_one_that_comes_after_the_last_step_is_not_lost(told):
    with Ending(None, "train", holds_signals=True):
        signal.raise_signal(signal.SIGTERM)
    assert told == [signal.SIGTERM]
    signal.raise_signal(signal.SIGTERM)
    assert told == [signal.SIGTERM] * 2


def test_an_error_comes_first(told):
    with pytest.raises(ValueError), Ending(None, "train", holds_signals=True):
        signal.raise_signal(signal.SIGTERM)
        raise ValueError
    assert not told


def test_ignored_signals_stay_ignored(told):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Ending(None, "train", holds_signals=True) as ending:
        signal.raise_signal(signal.SIGINT)
        assert ending.wanted == (False, False)
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_nothing_is_held_where_it_is_not_asked_for(told):
    with Ending(0.0001, "train", holds_signals=False) as ending:
        signal.raise_signal(signal.SIGTERM)
        assert told == [signal.SIGTERM]
        time.sleep(0.02)
        assert ending.wanted == (True, False)
