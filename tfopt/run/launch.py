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
from collections.abc import Callable, Sequence
from typing import IO, Any

from tfopt._base.cluster import VARIABLE, Cluster
from tfopt.errors import InputError, WorkFailedError

_GRACE_S = 20.0  # from SIGTERM to SIGKILL
TO_FOLLOW_S = 5.0  # from the first end to that of the others
TO_WRITE_S = 300.0  # a checkpoint, after a signal
INTERRUPTED = 75
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_LAST_WORDS = 20
_EVERY_S = 0.05


def launch(arguments: Sequence[str], workers: int, *, restarts: int = 0, show: Callable[[str], None]) -> int:
    """Runs `tfopt` with these arguments in several processes that train together, and waits for them.

    Each gets an address of the loopback interface in `TF_CONFIG`, and its share of the cores.

    Args:
        arguments: of the command, as ["run", "recipe.toml"].
        workers: processes, 2 or more.
        restarts: times that all begin anew, from the last checkpoint, after one was killed.
        show: takes what they write, line by line, each with the number of its worker before it.

    Returns:
        The exit code: 0, or that of the first worker that failed; a signal to this process goes on to all of them.

    Raises:
        InputError: fewer than two workers, restarts below 0, or restarts of a command that overwrites.
        WorkFailedError: a worker was killed.
    """
    check_launch(arguments, workers, restarts)
    for left in range(restarts, -1, -1):
        cluster, crew = Cluster(free_addresses(workers), 0), _Crew()
        try:
            with crew:
                for number in range(workers):
                    crew.workers.append(_Worker(arguments, cluster, number, show=show))
                return crew.wait()
        except WorkFailedError as error:
            if not left or crew.told:
                raise
            show(f"{error}. All begin anew, {left - 1} more times at most")
            arguments = resumed(arguments)
    raise AssertionError("the last attempt returns or raises")


def check_launch(arguments: Sequence[str], workers: int, restarts: int) -> None:
    """Raises InputError for what makes no sense."""
    if restarts and "--overwrite" in arguments:
        raise InputError(
            "--restarts goes on with what was begun, and --overwrite begins anew: remove the earlier run, or "
            "choose another --out"
        )
    if workers < 2:
        raise InputError(f"workers must be 2 or more, got {workers}; one needs no launcher")
    if restarts < 0:
        raise InputError(f"restarts must be 0 or more, got {restarts}")


def resumed(arguments: Sequence[str]) -> list[str]:
    """The command that goes on with what one of these arguments began."""
    return [*(one for one in arguments if one != "--resume"), "--resume"]


def told_killed(number: int, code: int, last_words: Sequence[str]) -> WorkFailedError:
    """What is told of a worker that a signal ended, -code."""
    name = signal.Signals(-code).name if -code in list(signal.Signals) else str(-code)
    said = next((f"; its last words: {line}" for line in reversed(last_words) if line.strip()), "")
    return WorkFailedError(
        f"worker {number} was ended by {name}{said}. The others were ended as well; the same command with "
        "--resume goes on from the last checkpoint"
    )


class _Worker:
    """A process, and the thread that shows what it writes."""

    def __init__(
        self, arguments: Sequence[str], cluster: Cluster, number: int, *, show: Callable[[str], None]
    ) -> None:
        self.number, self._show = number, show
        self.last_words: deque[str] = deque(maxlen=_LAST_WORDS)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tfopt", *arguments],
            env={**os.environ, VARIABLE: cluster.for_worker(number), **gpus_of(number, len(cluster.workers))},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            process_group=0,  # Ctrl-C of a terminal comes by way of this process, once
        )  # fmt: skip
        share_cores(self.process.pid, number, len(cluster.workers))
        assert self.process.stdout is not None
        self._stream: IO[str] = self.process.stdout
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        for line in self._stream:
            self.last_words.append(line.rstrip())
            with contextlib.suppress(OSError):  # nobody reads it any more; the worker must not wait for that
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
        if not self._thread.is_alive():  # a child of the worker may hold it
            self._stream.close()

    def failed(self, code: int) -> int:
        """The worker's exit code; raises where a signal ended it."""
        if code > 0:
            return code
        raise told_killed(self.number, code, list(self.last_words))


class _Crew:
    """All workers; while it is entered, SIGTERM and SIGINT go to all of them, and none is left behind."""

    def __init__(self) -> None:
        self.workers: list[_Worker] = []
        self._before: dict[int, Any] = {}
        self._told: float | None = None  # when they were told to end
        self._first_ended: float | None = None

    def __enter__(self) -> "_Crew":
        self._before = {number: signal.signal(number, self._pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.end()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def told(self) -> bool:
        """Whether a signal told them to end."""
        return self._told is not None

    def wait(self) -> int:
        """The exit code of all, once the chief or a failure decides."""
        while True:
            codes = [worker.process.poll() for worker in self.workers]
            chief_done = codes[0] == 0
            if all(code is not None for code in codes) or (chief_done and self._waited()):
                return self._code(codes)
            if any(codes) and not chief_done and self._waited():
                return self._code(codes)
            time.sleep(_EVERY_S)

    def _waited(self) -> bool:
        """Whether the others have had their time: to write a checkpoint, once they were told to end."""
        now = time.monotonic()
        if self._told is not None:
            return now - self._told > TO_WRITE_S
        self._first_ended = self._first_ended or now
        return now - self._first_ended > TO_FOLLOW_S

    def _code(self, codes: list[int | None]) -> int:
        if codes[0] == 0:  # the chief alone writes, and has done so
            return 0
        if self._told is not None and any(code == INTERRUPTED for code in codes):
            return INTERRUPTED
        code, number = min((code, number) for number, code in enumerate(codes) if code)
        return self.workers[number].failed(code)

    def _pass_on(self, number: int, frame: object) -> None:
        if self._told is not None:
            self._told = -TO_WRITE_S  # asked for twice: no more waiting
        else:
            self._told = time.monotonic()
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.process.terminate()


def share_cores(pid: int, number: int, workers: int) -> None:
    """Gives a worker its share of the cores, where there are enough and the system can."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    own = cores[number::workers]
    if own:
        with contextlib.suppress(OSError):  # it has ended
            os.sched_setaffinity(pid, own)


def free_addresses(count: int) -> tuple[str, ...]:
    """Addresses of the loopback interface that nobody listens on."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return tuple(f"127.0.0.1:{probe.getsockname()[1]}" for probe in probes)


def gpus_of(number: int, workers: int) -> dict[str, str]:
    """What gives a worker its share of the GPUs that are named as visible, or none where they are too few."""
    named = [gpu for gpu in os.environ.get(_VISIBLE, "").split(",") if gpu.strip()]
    own = named[number::workers] if len(named) >= workers else []
    return {_VISIBLE: ",".join(own) or "-1"} if named else {}
