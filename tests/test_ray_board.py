"""When the workers of a training through Ray begin anew, and when they do not."""

import pytest

from tfopt.errors import WorkFailedError
from tfopt.run import ray_board
from tfopt.run.ray_board import Board
from tfopt.run.ray_launch import _code


def begun(workers=2):
    board = Board(workers)
    assert [board.begin(number) for number in range(workers)] == [0] * workers
    return board


def test_a_worker_that_was_killed_lets_all_begin_anew():
    board = begun()
    board.report(1, -9)
    assert not board.is_decided() and not board.is_over()
    board.report(0, 1)  # "another worker is gone"
    assert board.is_decided() and not board.is_over()
    assert board.begin(1) == 1 and board.reports() == {} and board.begin(0) == 1
    assert board.taken() == ["a worker was lost: all begin anew (1 so far)"] and board.taken() == []
    # An actor that is gone with its process reports nothing.
    board.report(0, 1)
    assert not board.is_over() and board.begin(0) == 2


@pytest.mark.parametrize("codes", [{0: 1, 1: 1}, {0: 2}, {1: 2}], ids=str)
def test_what_would_fail_again_does_not_begin_anew(codes):
    board = begun()
    for number, code in codes.items():
        board.report(number, code)
    assert board.is_over() and board.is_decided() and board.begin(0) is None is board.begin(1)


def test_the_chief_alone_decides_that_it_is_done(monkeypatch):
    board = begun()
    board.report(0, 0)
    assert board.is_over() and board.ending() is None
    monkeypatch.setattr(ray_board, "TO_FOLLOW_S", -1.0)
    assert board.ending() == "now"
    assert _code({0: 0, 1: -6}, [], []) == 0


def test_signals():
    board = begun()
    assert board.ending() is None
    board.end(False)
    assert board.ending() == "soon" and board.is_over()
    board.end(True)
    assert board.ending() == "now"
    assert _code({}, [15], []) == 75 == _code({0: 75, 1: 1}, [15], [])


def test_what_is_told_in_the_end():
    assert _code({0: 1, 1: 1}, [], []) == 1 and _code({0: 2}, [], []) == 2
    with pytest.raises(WorkFailedError, match="worker 1 was ended by SIGKILL"):
        _code({0: 1, 1: -9}, [], [RuntimeError("x")])
    with pytest.raises(WorkFailedError, match="Ray gave up .a node is gone.*--resume goes on"):
        _code({1: 1}, [], [RuntimeError("a node is gone")])
