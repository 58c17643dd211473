"""The workers of a training as actors of Ray Train, which starts them anew when one is lost. Needs the extra `ray`.

Each actor runs the command as a process of its own, just as `launch` does, with the `TF_CONFIG` that Ray gives it.
The run's folder must be on a disk that all machines see.
"""

import contextlib
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tfopt._base.ray_actors import cluster
from tfopt.errors import WorkFailedError
from tfopt.run.launch import INTERRUPTED, check_workers, resumed, share_cores, told_killed

_EVERY_S = 0.2
_USAGE = 2


def launch_by_ray(arguments: Sequence[str], workers: int, *, restarts: int = 0, show: Callable[[str], None]) -> int:
    """`launch` by Ray Train's `TensorflowTrainer`; arguments, result and errors are those of `launch`."""
    check_workers(workers, restarts)
    with cluster(workers), tempfile.TemporaryDirectory(prefix="tfopt-ray-") as folder:
        board = _board(workers)
        with _watched(board, show):
            failure = _fitted(board, arguments, workers, restarts=restarts, folder=folder)
        return _code(_reports(board), failure)


def _fitted(
    board: Any, arguments: Sequence[str], workers: int, *, restarts: int, folder: str
) -> BaseException | None:
    """Trains; what Ray says where it gave up."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.tensorflow import TensorflowTrainer

    trainer = TensorflowTrainer(
        _work, train_loop_config={"board": board, "arguments": list(arguments), "folder": str(Path.cwd())},
        scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(storage_path=folder, failure_config=FailureConfig(max_failures=restarts)),
    )  # fmt: skip
    try:
        trainer.fit()
    except TrainingFailedError as error:
        return error
    return None


def _code(reports: dict[int, int], failure: BaseException | None) -> int:
    """The exit code of all, from the last that the workers reported."""
    if failure is None and reports.get(0) == 0:  # the chief alone writes, and has done so
        return 0
    if INTERRUPTED in reports.values():
        return INTERRUPTED
    bad = sorted((code, number) for number, code in reports.items() if code)
    if not bad:
        raise WorkFailedError(
            f"Ray lost a worker ({failure}); the same command with --resume goes on from the last checkpoint"
        )
    code, number = bad[0]
    if code > 0:
        return code
    raise told_killed(number, code, [])


class _Board:
    """What workers and the one who waits for them tell each other; an actor."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._lines: deque[str] = deque()
        self._reports: dict[int, int] = {}
        self._began: dict[int, int] = {}
        self._attempts = 0
        self._ending = False

    def begin(self, number: int) -> int | None:
        """How often this worker began before; None where there is nothing to begin anew for."""
        times = self._began.get(number, 0)
        self._began[number] = times + 1
        if self._ending or self._is_final():
            return None
        if self._began[number] > self._attempts:  # the first of a new attempt
            self._attempts, self._reports = self._began[number], {}
            if times:
                self._lines.append(f"a worker was lost: all begin anew, for the {times + 1}. time")
        return times

    def _is_final(self) -> bool:
        """Whether an earlier attempt ended by itself: what it met, another would meet as well."""
        codes = list(self._reports.values())
        bad = [code for code in codes if code > 0 and code != INTERRUPTED]
        return _USAGE in codes or len(bad) == self._workers

    def say(self, line: str) -> None:
        self._lines.append(line)

    def report(self, number: int, code: int) -> None:
        self._reports[number] = code

    def end(self) -> None:
        """Asks all workers to end."""
        self._ending = True

    def ending(self) -> bool:
        return self._ending

    def taken(self) -> list[str]:
        """The lines that were said since the last time."""
        lines = list(self._lines)
        self._lines.clear()
        return lines

    def reports(self) -> dict[int, int]:
        return self._reports


def _board(workers: int) -> Any:
    import ray

    return ray.remote(num_cpus=0)(_Board).remote(workers)


def _reports(board: Any) -> dict[int, int]:
    import ray

    found: dict[int, int] = ray.get(board.reports.remote())
    return found


@contextlib.contextmanager
def _watched(board: Any, show: Callable[[str], None]) -> Iterator[None]:
    """Shows what workers say; SIGTERM and SIGINT go to all of them."""
    import ray

    done, told = threading.Event(), threading.Event()

    def follow() -> None:
        asked = False
        while True:
            last = done.wait(_EVERY_S)
            if told.is_set() and not asked:
                asked = True
                board.end.remote()
            for line in ray.get(board.taken.remote()):
                with contextlib.suppress(OSError):  # nobody reads it any more
                    show(line)
            if last:
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    in_main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGTERM, signal.SIGINT) if in_main else ()
    before = {number: signal.signal(number, lambda *_: told.set()) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        done.set()
        thread.join()


def _work(config: dict[str, Any]) -> None:
    """What Ray calls in every actor."""
    import ray
    import ray.train

    board, context = config["board"], ray.train.get_context()
    number = context.get_world_rank()
    times = ray.get(board.begin.remote(number))
    if times is None:
        return
    arguments = resumed(config["arguments"]) if times else config["arguments"]
    process = subprocess.Popen(
        [sys.executable, "-c", "from tfopt.run.ray_launch import attended; attended()", *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        cwd=config["folder"],
    )  # fmt: skip
    share_cores(process.pid, context.get_local_rank(), context.get_local_world_size())

    def end_when_asked() -> None:
        while process.poll() is None:
            if ray.get(board.ending.remote()):
                process.terminate()
                return
            time.sleep(_EVERY_S)

    threading.Thread(target=end_when_asked, daemon=True).start()
    assert process.stdout is not None
    for line in process.stdout:
        board.say.remote(f"[{number}] {line.rstrip()}")
    code = process.wait()
    ray.get(board.report.remote(number, code))
    if code and not ray.get(board.ending.remote()):  # the others are ended, and all begin anew
        raise WorkFailedError(f"worker {number} ended with {code}")


def attended() -> None:
    """The command in a process that ends with the one that holds its standard input, also where that is killed."""

    def watch() -> None:
        while os.read(0, 1):  # not sys.stdin, whose lock Python wants when it ends
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    sys.argv[0] = "tfopt"
    runpy.run_module("tfopt", run_name="__main__", alter_sys=False)
