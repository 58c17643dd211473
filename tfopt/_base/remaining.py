"""How much of a job is done and the time that is left, in plain lines."""

import time
from collections.abc import Callable, Iterator, Sequence

Log = Callable[[str], None]
_SECONDS_BETWEEN_LINES = 15.0


def told_one_by_one(title: str, names: Sequence[str], log: Log) -> Iterator[str]:
    """Gives names in turn; a line before each tells which it is and, from what the others took, the time left."""
    started = time.monotonic()
    for done, name in enumerate(names):
        left = (time.monotonic() - started) / done * (len(names) - done) if done else 0.0
        log(f"{title.format(name)} ({done + 1} of {len(names)}{f', {left:.0f} s left' if left >= 1 else ''})")
        yield name


def now_and_then(log: Log) -> Log:
    """A function that takes lines and passes one on every 15 seconds."""
    last = time.monotonic()

    def told(line: str) -> None:
        nonlocal last
        if time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            log(line)

    return told


def told_now_and_then(title: str, log: Log) -> Callable[[int, int], None]:
    """A function that takes how much is done and how much there is, and tells it every 15 seconds."""
    started, tell = time.monotonic(), now_and_then(log)

    def told(done: int, total: int) -> None:
        if done:
            left = (time.monotonic() - started) * (total - done) / done
            tell(f"{title}: {done / total:.0%} ({left:.0f} s left)")

    return told
