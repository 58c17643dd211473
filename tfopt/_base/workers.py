"""Many calls of one function in a few processes, with results in order and little of it under way at once."""

import logging
import multiprocessing.connection
import traceback
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

from tfopt._base.children import Child, ChildFailedError, limit_memory
from tfopt._base.limits import PARSING_BYTES
from tfopt.errors import TfoptError

_ENDING_S = 10.0
_PATIENCE_S = 600.0  # for one call, as `run_in_child` has
_UNDER_WAY = 3  # calls for each process whose results were not taken yet
_log = logging.getLogger(__name__)


def in_children(
    function: Callable[..., Any],
    calls: Iterable[tuple[Any, ...]],
    *,
    workers: int,
    preload: tuple[str, ...],
    apart: bool = False,
    setup: Callable[[], Any] | None = None,
    again: int = 0,
    patience_s: float | None = _PATIENCE_S,
) -> Generator[Any, None, None]:
    """What `function` returns for each call, in their order; calls are drawn as they are needed.

    Args:
        function: of a module that can be imported.
        calls: arguments, which are pickled, as are results.
        workers: processes; 1 for none but this one.
        preload: modules that the processes have from the beginning.
        apart: never call it in this process, and limit the memory of the others: it parses what nobody here wrote.
        setup: is called once in each process, before the first call; what it returns is the first argument of all.
        again: times that a call is done once more, in a new process, after one that was killed at it.
        patience_s: seconds until one of the calls under way must have ended; None for any.

    Raises:
        TfoptError: what a call raised.
        ChildFailedError: a process ended, or a call raised something else.
    """
    if workers < 2 and not apart:
        first = () if setup is None else (setup(),)
        for arguments in calls:
            yield function(*first, *arguments)
        return
    pool: list[_Worker] = []
    try:
        for _ in range(max(workers, 1)):
            pool.append(_Worker(function, preload, memory=PARSING_BYTES if apart else None, setup=setup))
        yield from _spread(iter(calls), pool, again=again, patience_s=patience_s)
    finally:
        for worker in pool:
            worker.end()


class _EndedError(ChildFailedError):
    """A process is gone without an answer."""


def _spread(
    calls: Iterator[tuple[Any, ...]], pool: "list[_Worker]", *, again: int, patience_s: float | None
) -> Iterator[Any]:
    done: dict[int, Any] = {}
    killed: Counter[int] = Counter()
    given = taken = 0
    more = True
    idle = list(pool)
    while True:
        while idle and more and given - taken < _UNDER_WAY * len(pool):
            arguments = next(calls, None)
            if arguments is None:
                more = False
                break
            idle.pop().give(given, arguments)
            given += 1
        while taken in done:
            yield done.pop(taken)
            taken += 1
        busy = {worker.pipe: worker for worker in pool if worker not in idle}
        if not busy and not more:
            return
        gone = [pipe for pipe in busy if pipe.closed]
        ready = gone or (multiprocessing.connection.wait(list(busy), patience_s) if busy else [])
        if busy and not ready:
            raise ChildFailedError(f"no answer of a worker within {patience_s:.0f} seconds")
        for pipe in ready:
            worker = busy[pipe]  # type: ignore[index]
            try:
                done[worker.number] = worker.take()
            except _EndedError as ended:
                killed[worker.number] += 1
                if killed[worker.number] > again:
                    raise ChildFailedError(str(ended)) from None
                _log.warning("%s; what it had to do is done again by another", ended)
                worker.start_again()
                continue
            idle.append(worker)


class _Worker:
    """A process that answers calls until it is told to end."""

    def __init__(
        self,
        function: Callable[..., Any],
        preload: tuple[str, ...],
        *,
        memory: int | None,
        setup: Callable[[], Any] | None,
    ) -> None:
        self._preload, self._work = preload, (function, setup, memory)
        self.number, self._arguments = -1, ()
        self._start()

    def _start(self) -> None:
        self.pipe, theirs = multiprocessing.connection.Pipe()
        self._child = Child(self._preload, _serve, (*self._work, theirs))
        self._child.start()
        theirs.close()

    def start_again(self) -> None:
        """A new process does what the last one did not."""
        self.end()
        self._start()
        self.give(self.number, self._arguments)

    def give(self, number: int, arguments: tuple[Any, ...]) -> None:
        self.number, self._arguments = number, arguments
        try:
            self.pipe.send(arguments)
        except OSError:  # it has ended: `take` says how
            self.pipe.close()

    def take(self) -> Any:
        try:
            kind, value = self.pipe.recv()
        except (EOFError, OSError):
            self._child.join(_ENDING_S)
            code = self._child.exitcode or 0
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise _EndedError(f"a worker process ended ({how})") from None
        if kind == "error":
            raise value
        return value

    def end(self) -> None:
        self.pipe.close()
        self._child.kill()
        self._child.join()


def _serve(function: Callable[..., Any], setup: Callable[[], Any] | None, memory: int | None, pipe: Any) -> None:
    """The child's side."""
    if memory is not None:
        limit_memory(memory)
    call = Call(function, setup)
    while True:
        try:
            arguments = pipe.recv()
        except EOFError:
            return
        pipe.send(call(arguments))


class Call:
    """Calls a function for others; what it returns or raises is told as "result" or "error"."""

    def __init__(self, function: Callable[..., Any], setup: Callable[[], Any] | None) -> None:
        self._function, self._setup = function, setup
        self._first: tuple[Any, ...] = ()

    def __call__(self, arguments: tuple[Any, ...]) -> tuple[str, Any]:
        try:
            if self._setup is not None:
                self._first, self._setup = (self._setup(),), None
            return "result", self._function(*self._first, *arguments)
        except TfoptError as error:
            return "error", error
        except Exception as error:  # noqa: BLE001 - whatever it is, the parent is told
            traceback.print_exc()
            return "error", ChildFailedError(f"a worker failed: {type(error).__name__}: {error}")
