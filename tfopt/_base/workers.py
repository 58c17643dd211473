"""Many calls of one function in a few processes, with results in order and little of it under way at once."""

import multiprocessing.connection
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tfopt._base.children import Child, ChildFailedError, limit_memory
from tfopt._base.limits import PARSING_BYTES
from tfopt.errors import TfoptError

_ENDING_S = 10.0
_PATIENCE_S = 600.0  # for one call, as `run_in_child` has
_UNDER_WAY = 3  # calls for each process whose results were not taken yet


def in_children(
    function: Callable[..., Any],
    calls: Iterable[tuple[Any, ...]],
    *,
    workers: int,
    preload: tuple[str, ...],
    apart: bool = False,
) -> Iterator[Any]:
    """What `function` returns for each call, in their order; calls are drawn as they are needed.

    Args:
        function: of a module that can be imported.
        calls: arguments, which are pickled, as are results.
        workers: processes; 1 for none but this one.
        preload: modules that the processes have from the beginning.
        apart: never call it in this process, and limit the memory of the others: it parses what nobody here wrote.

    Raises:
        TfoptError: what a call raised.
        ChildFailedError: a process ended, or a call raised something else.
    """
    if workers < 2 and not apart:
        for arguments in calls:
            yield function(*arguments)
        return
    pool: list[_Worker] = []
    try:
        for _ in range(max(workers, 1)):
            pool.append(_Worker(function, preload, PARSING_BYTES if apart else None))
        yield from _spread(iter(calls), pool)
    finally:
        for worker in pool:
            worker.end()


def _spread(calls: Iterator[tuple[Any, ...]], pool: "list[_Worker]") -> Iterator[Any]:
    done: dict[int, Any] = {}
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
        ready = gone or (multiprocessing.connection.wait(list(busy), _PATIENCE_S) if busy else [])
        if busy and not ready:
            raise ChildFailedError(f"no answer of a worker within {_PATIENCE_S:.0f} seconds")
        for pipe in ready:
            worker = busy[pipe]  # type: ignore[index]
            number, result = worker.take()
            done[number] = result
            idle.append(worker)


class _Worker:
    """A process that answers calls until it is told to end."""

    def __init__(self, function: Callable[..., Any], preload: tuple[str, ...], memory: int | None) -> None:
        self.pipe, theirs = multiprocessing.connection.Pipe()
        self._child = Child(preload, _serve, (function, memory, theirs))
        self._child.start()
        theirs.close()
        self._number = -1

    def give(self, number: int, arguments: tuple[Any, ...]) -> None:
        self._number = number
        try:
            self.pipe.send(arguments)
        except OSError:  # it has ended: `take` says how
            self.pipe.close()

    def take(self) -> tuple[int, Any]:
        try:
            kind, value = self.pipe.recv()
        except (EOFError, OSError):
            self._child.join(_ENDING_S)
            code = self._child.exitcode or 0
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise ChildFailedError(f"a worker process ended ({how})") from None
        if kind == "error":
            raise value
        return self._number, value

    def end(self) -> None:
        self.pipe.close()
        self._child.kill()
        self._child.join()


def _serve(function: Callable[..., Any], memory: int | None, pipe: Any) -> None:
    """The child's side."""
    if memory is not None:
        limit_memory(memory)
    while True:
        try:
            arguments = pipe.recv()
        except EOFError:
            return
        try:
            answer = ("result", function(*arguments))
        except TfoptError as error:
            answer = ("error", error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the parent is told
            traceback.print_exc()
            answer = ("error", ChildFailedError(f"a worker failed: {type(error).__name__}: {error}"))
        pipe.send(answer)
