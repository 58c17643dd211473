"""What the workers of a training through Ray and the one who waits for them tell each other."""

import time
from collections import deque
from typing import Literal

from tfopt.run.launch import INTERRUPTED, TO_FOLLOW_S, TO_WRITE_S

_USAGE = 2


class Board:
    """An actor of Ray. Workers begin, say lines and report exit codes; all of them begin anew where one was lost.

    Args:
        workers: how many there are.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._lines: deque[str] = deque()
        self._reports: dict[int, int] = {}
        self._began: dict[int, int] = {}
        self._attempts = 0
        self._end: float | None = None  # when what was asked for must have happened
        self._chief_done: float | None = None

    def begin(self, number: int) -> int | None:
        """How often this worker began before; None where there is nothing to begin anew for."""
        times = self._began.get(number, 0)
        if self.is_over():
            return None
        self._began[number] = times + 1
        if self._began[number] > self._attempts:  # the first of a new attempt
            self._attempts, self._reports = self._began[number], {}
            if times:
                self._lines.append(f"a worker was lost: all begin anew ({times} so far)")
        return times

    def report(self, number: int, code: int) -> None:
        """What a worker's process ended with; negative for a signal."""
        self._reports[number] = code
        if number == 0 and code == 0:
            self._chief_done = time.monotonic()

    def is_decided(self) -> bool:
        """Whether it is known if the others are to begin anew: all have ended, or it is over."""
        return self.is_over() or len(self._reports) == self._workers

    def is_over(self) -> bool:
        """Whether nothing is to begin anew: it is done, to end, or ended by itself, as another attempt would."""
        codes = list(self._reports.values())
        by_itself = len(codes) == self._workers and all(code > 0 and code != INTERRUPTED for code in codes)
        return self._chief_done is not None or self._end is not None or by_itself or _USAGE in codes

    def end(self, now: bool) -> None:
        """Asks all workers to end, or ends them."""
        self._end = time.monotonic() + (0 if now else TO_WRITE_S)

    def ending(self) -> Literal["soon", "now"] | None:
        """Whether a worker is to end, and whether it may still write."""
        if self._chief_done is not None and time.monotonic() - self._chief_done > TO_FOLLOW_S:
            return "now"
        if self._end is None:
            return None
        return "now" if time.monotonic() >= self._end else "soon"

    def say(self, line: str) -> None:
        self._lines.append(line)

    def taken(self) -> list[str]:
        """The lines that were said since the last time."""
        lines = list(self._lines)
        self._lines.clear()
        return lines

    def reports(self) -> dict[int, int]:
        return self._reports
