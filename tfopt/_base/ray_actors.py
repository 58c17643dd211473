"""The calls of `workers.in_children` by actors of Ray Data, on this machine or a cluster. Needs the extra `ray`."""

import contextlib
import itertools
import logging
import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tfopt._base.cores import usable_cores
from tfopt._base.workers import Call
from tfopt.errors import InputError

_AT_ONCE = 4096  # calls that are handed to Ray together; it holds all of them


def in_actors(
    function: Callable[..., Any],
    calls: Iterable[tuple[Any, ...]],
    *,
    workers: int,
    setup: Callable[[], Any] | None = None,
) -> Iterator[Any]:
    """What `function` returns for each call, in their order; arguments as for `in_children`.

    Ray does a call again whose actor was killed. Paths must be the same on all machines of its cluster.

    Raises:
        TfoptError: what a call raised.
        ChildFailedError: a call raised something else.
        InputError: the extra is not installed.
    """
    remaining, number = iter(calls), 0
    with cluster(workers):
        while some := [pickle.dumps(arguments) for arguments in itertools.islice(remaining, _AT_ONCE)]:
            for row in _answers(function, some, workers=workers, setup=setup):
                if row["number"] != number % _AT_ONCE:  # what is written next depends on it
                    raise RuntimeError(f"Ray answered call {row['number']} in place of {number % _AT_ONCE}")
                kind, value = pickle.loads(row["answer"])
                if kind == "error":
                    raise value
                yield value
                number += 1


def _answers(
    function: Callable[..., Any], calls: list[bytes], *, workers: int, setup: Callable[[], Any] | None
) -> Iterator[dict[str, Any]]:
    import ray.data

    rows = [{"number": number, "call": call} for number, call in enumerate(calls)]
    ordered = ray.data.DataContext.get_current().copy()
    ordered.execution_options.preserve_order = True
    ordered.enable_progress_bars = False
    with ray.data.DataContext.current(ordered):
        data = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            _Actor,  # type: ignore[arg-type]
            fn_constructor_args=(function, setup), num_cpus=1,
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(rows))),
        )  # fmt: skip
        yield from data.iter_rows()


class _Actor:
    """What Ray Data keeps in each of its processes."""

    def __init__(self, function: Callable[..., Any], setup: Callable[[], Any] | None) -> None:
        self._call = Call(function, setup)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        answer = self._call(pickle.loads(row["call"]))
        return {"number": row["number"], "answer": pickle.dumps(answer)}


@contextlib.contextmanager
def cluster(workers: int) -> Iterator[None]:
    """The cluster that this program is connected to, the one that `RAY_ADDRESS` names, or one of this machine.

    Raises:
        InputError: the extra is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError(f"Ray needs another package: pip install 'tfopt[ray]' ({error})") from error
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
