"""Starts the workers of a training as local processes: one fails, all end; its reason is what is told."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import IO

from tfopt._base.cluster import VARIABLE, Cluster
from tfopt.errors import InputError, WorkFailedError

_GRACE_S = 20.0  # from SIGTERM to SIGKILL
_AFTER_CHIEF_S = 30.0
_LAST_WORDS = 20
_EVERY_S = 0.05


def launch(arguments: Sequence[str], workers: int, *, show: Callable[[str], None]) -> int:
    """Runs `tfopt` with these arguments in several processes that train together, and waits for them.

    Each gets an address of the loopback interface in `TF_CONFIG`, and its share of the cores.

    Args:
        arguments: of the command, as ["run", "recipe.toml"].
        workers: processes, 2 or more.
        show: takes what they write, line by line, each with the number of its worker before it.

    Returns:
        The exit code: 0, or that of the first worker that failed; a signal to this process goes on to all of them.

    Raises:
        InputError: fewer than two workers.
        WorkFailedError: a worker was killed.
    """
    if workers < 2:
        raise InputError(f"workers must be 2 or more, got {workers}; one needs no launcher")
    cluster = Cluster(free_addresses(workers), 0)
    crew: list[_Worker] = []
    try:
        crew += [_Worker(arguments, cluster, number, show=show) for number in range(workers)]
        with _passed_on(crew):
            return _wait(crew, show)
    finally:
        for worker in crew:
            worker.end()


class _Worker:
    """A process, and the thread that shows what it writes."""

    def __init__(
        self, arguments: Sequence[str], cluster: Cluster, number: int, *, show: Callable[[str], None]
    ) -> None:
        self.number, self._show = number, show
        self.last_words: deque[str] = deque(maxlen=_LAST_WORDS)
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        own = cores[number :: len(cluster.workers)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tfopt", *arguments], env={**os.environ, VARIABLE: cluster.for_worker(number)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        )  # fmt: skip
        if own:
            with contextlib.suppress(OSError):  # it has ended
                os.sched_setaffinity(self.process.pid, own)
        assert self.process.stdout is not None
        self._stream: IO[str] = self.process.stdout
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        for line in self._stream:
            self.last_words.append(line.rstrip())
            self._show(f"[{self.number}] {line.rstrip()}")

    def end(self) -> None:
        """Ends the process, which has a while to do so itself."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_GRACE_S)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._thread.join(_GRACE_S)
        self._stream.close()


def _wait(crew: list[_Worker], show: Callable[[str], None]) -> int:
    chief_ended: float | None = None
    while True:
        codes = [worker.process.poll() for worker in crew]
        # One that was killed is the reason why others failed.
        order = sorted((code, i) for i, code in enumerate(codes) if code)
        failed = order[0][1] if order else None
        if failed is not None:
            return _failed(crew[failed], codes[failed] or 0)
        if all(code == 0 for code in codes):
            return 0
        if codes[0] == 0:
            chief_ended = chief_ended or time.monotonic()
            if time.monotonic() - chief_ended > _AFTER_CHIEF_S:
                show("the chief has ended, the others have not: they are ended")
                return 0
        time.sleep(_EVERY_S)


def _failed(worker: _Worker, code: int) -> int:
    if code > 0:
        return code
    name = signal.Signals(-code).name if -code in list(signal.Signals) else str(-code)
    said = next((f"; its last words: {line}" for line in reversed(worker.last_words) if line.strip()), "")
    raise WorkFailedError(
        f"worker {worker.number} was ended by {name}{said}. The others were ended as well; the same command with "
        "--resume goes on from the last checkpoint"
    )


@contextlib.contextmanager
def _passed_on(crew: list[_Worker]) -> Iterator[None]:
    """While entered, SIGTERM and SIGINT go to all workers, which end in order and say with which code."""

    def pass_on(number: int, frame: object) -> None:
        for worker in crew:
            if worker.process.poll() is None:
                worker.process.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def free_addresses(count: int) -> tuple[str, ...]:
    """Addresses of the loopback interface that nobody listens on."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return tuple(f"127.0.0.1:{probe.getsockname()[1]}" for probe in probes)
