"""The calls of `workers.in_children` by actors of Ray Data, on this machine or a cluster. Needs the extra `ray`."""

import contextlib
import importlib.util
import logging
import os
import pickle
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

from tfopt._base.children import ChildFailedError
from tfopt._base.cores import usable_cores
from tfopt._base.workers import Call
from tfopt.errors import InputError

_AT_ONCE, _BYTES_AT_ONCE = 4096, 1 << 28  # calls that are handed to Ray together; it holds all of them


def in_actors(
    function: Callable[..., Any],
    calls: Iterable[tuple[Any, ...]],
    *,
    workers: int,
    setup: Callable[[], Any] | None = None,
    again: int = 0,
) -> Generator[Any, None, None]:
    """What `function` returns for each call, in their order; arguments as for `in_children`.

    Paths must be the same on all machines of the cluster.

    Raises:
        TfoptError: what a call raised.
        ChildFailedError: a call raised something else, or Ray gave up.
        InputError: the extra is not installed.
    """
    with cluster(workers):
        import ray.exceptions

        for some in _handed_over(calls):
            try:
                for number, row in enumerate(_answers(function, some, workers=workers, setup=setup, again=again)):
                    if row["number"] != number:  # what is written next depends on it
                        raise ChildFailedError(f"Ray answered call {row['number']} in place of {number}")
                    kind, value = pickle.loads(row["answer"])
                    if kind == "error":
                        raise value
                    yield value
            except ray.exceptions.RayError as error:
                last = str(error).strip().splitlines() or [""]
                raise ChildFailedError(f"Ray gave up: {type(error).__name__}: {last[0]}") from error


def _handed_over(calls: Iterable[tuple[Any, ...]]) -> Iterator[list[bytes]]:
    """Calls, pickled, as many at a time as Ray is given."""
    some: list[bytes] = []
    held = 0
    for arguments in calls:
        some.append(pickle.dumps(arguments))
        held += len(some[-1])
        if len(some) == _AT_ONCE or held > _BYTES_AT_ONCE:
            yield some
            some, held = [], 0
    if some:
        yield some


def _answers(
    function: Callable[..., Any],
    calls: list[bytes],
    *,
    workers: int,
    setup: Callable[[], Any] | None,
    again: int,
) -> Iterator[dict[str, Any]]:
    import ray
    import ray.data

    begun: Any = ray.remote(num_cpus=0)(_Begun).remote()

    class Actor:
        """What Ray Data keeps in each of its processes.

        What it needs is part of the class: arguments in Ray's store may be lost before an actor begins anew.
        """

        def __init__(self) -> None:
            self._call = Call(function, setup)

        def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
            times = ray.get(begun.times.remote(row["number"]))
            if times > again:  # Ray would do it again for ever
                answer: Any = ("error", ChildFailedError(f"a call ended {times} processes of Ray"))
            else:
                answer = self._call(pickle.loads(row["call"]))
            return {"number": row["number"], "answer": pickle.dumps(answer)}

    rows = [{"number": number, "call": call} for number, call in enumerate(calls)]
    pool = ray.data.ActorPoolStrategy(size=min(workers, len(rows)))
    settings = ray.data.DataContext.get_current().copy()
    settings.execution_options.preserve_order = True
    settings.enable_progress_bars = False
    with _without_notes():
        with ray.data.DataContext.current(settings):  # which a dataset keeps from when it is made
            data = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
                Actor,  # type: ignore[arg-type]
                num_cpus=1, compute=pool,
            )  # fmt: skip
        yield from data.iter_rows()


class _Begun:
    """How often each call was begun, known to all; an actor."""

    def __init__(self) -> None:
        self._times: Counter[int] = Counter()

    def times(self, number: int) -> int:
        """Before now."""
        self._times[number] += 1
        return self._times[number] - 1


@contextlib.contextmanager
def _without_notes() -> Iterator[None]:
    """Ray Data does not say meanwhile what it is doing."""
    log = logging.getLogger("ray.data")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def check_ray() -> None:
    """Raises InputError where the extra is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise InputError("Ray needs another package: pip install 'tfopt[ray]'")


@contextlib.contextmanager
def cluster(workers: int) -> Iterator[None]:
    """The cluster that this program is connected to, the one that `RAY_ADDRESS` names, or one of this machine."""
    check_ray()
    import ray

    if ray.is_initialized():
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False)
    else:
        ray.init(
            num_cpus=max(workers, usable_cores()), include_dashboard=False, log_to_driver=False,
            logging_level=logging.ERROR,
        )  # fmt: skip
    try:
        yield
    finally:
        ray.shutdown()
