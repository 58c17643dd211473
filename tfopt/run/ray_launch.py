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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tfopt._base.ray_actors import cluster
from tfopt.errors import WorkFailedError
from tfopt.run.launch import INTERRUPTED, check_launch, gpus_of, resumed, share_cores, told_killed
from tfopt.run.ray_board import Board

_EVERY_S = 0.2
_TO_REPORT_S = 40.0  # a worker that lost another ends itself within 30 seconds


def launch_by_ray(arguments: Sequence[str], workers: int, *, restarts: int = 0, show: Callable[[str], None]) -> int:
    """`launch` by Ray Train's `TensorflowTrainer`; arguments, result and errors are those of `launch`."""
    check_launch(arguments, workers, restarts)
    with cluster(workers), tempfile.TemporaryDirectory(prefix="tfopt-ray-") as folder:
        import ray

        board: Any = ray.remote(num_cpus=0)(Board).remote(workers)
        failures: list[BaseException] = []

        def fit() -> None:
            try:
                _trainer(board, arguments, workers, restarts=restarts, folder=folder).fit()
            except Exception as error:  # noqa: BLE001 - of whatever kind, the reports of workers say more
                failures.append(error)

        # In a thread Ray leaves the handlers of signals alone; it would end without a checkpoint.
        thread = threading.Thread(target=fit, daemon=True)
        with _signals() as told:
            thread.start()
            _follow(thread, board, told, show=show)
        return _code(ray.get(board.reports.remote()), told, failures)


def _trainer(board: Any, arguments: Sequence[str], workers: int, *, restarts: int, folder: str) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.tensorflow import TensorflowTrainer

    return TensorflowTrainer(
        _work, train_loop_config={"board": board, "arguments": list(arguments), "folder": str(Path.cwd())},
        scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(storage_path=folder, failure_config=FailureConfig(max_failures=restarts)),
    )  # fmt: skip


def _code(reports: dict[int, int], told: Sequence[int], failures: Sequence[BaseException]) -> int:
    """The exit code of all, from the last that the workers reported."""
    if reports.get(0) == 0:  # the chief alone writes, and has done so
        return 0
    if told and (not reports or INTERRUPTED in reports.values()):
        return INTERRUPTED
    bad = sorted((code, number) for number, code in reports.items() if code)
    if bad and bad[0][0] < 0:
        raise told_killed(bad[0][1], bad[0][0], [])
    if failures:
        raise WorkFailedError(
            f"Ray gave up ({failures[0]}); the same command with --resume goes on from the last checkpoint"
        ) from failures[0]
    return bad[0][0] if bad else INTERRUPTED


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """SIGTERM and SIGINT that came while it is entered."""
    told: list[int] = []
    in_main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGTERM, signal.SIGINT) if in_main else ()
    before = {number: signal.signal(number, lambda number, _: told.append(number)) for number in numbers}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _follow(thread: threading.Thread, board: Any, told: Sequence[int], show: Callable[[str], None]) -> None:
    """Shows what workers say until the thread ends; signals go to all of them, and a second one ends them."""
    import ray

    asked = 0
    while True:
        thread.join(_EVERY_S)
        last = not thread.is_alive()
        if len(told) > asked:
            asked = len(told)
            board.end.remote(asked > 1)
        for line in ray.get(board.taken.remote()):
            with contextlib.suppress(OSError):  # nobody reads it any more
                show(line)
        if last:
            return


def _work(config: dict[str, Any]) -> None:
    """What Ray calls in every actor."""
    import ray
    import ray.train

    board, context = config["board"], ray.train.get_context()
    number, own, of = context.get_world_rank(), context.get_local_rank(), context.get_local_world_size()
    times = ray.get(board.begin.remote(number))
    if times is None:
        return
    arguments = resumed(config["arguments"]) if times else config["arguments"]
    process = subprocess.Popen(
        [sys.executable, "-c", "from tfopt.run.ray_launch import attended; attended()", *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        cwd=config["folder"], env={**os.environ, **gpus_of(own, of)},
    )  # fmt: skip
    share_cores(process.pid, own, of)
    threading.Thread(target=_end_when_asked, args=(process, board), daemon=True).start()
    assert process.stdout is not None
    for line in process.stdout:
        board.say.remote(f"[{number}] {line.rstrip()}")
    code = process.wait()
    ray.get(board.report.remote(number, code))
    end = time.monotonic() + _TO_REPORT_S
    while code and not ray.get(board.is_decided.remote()) and time.monotonic() < end:
        time.sleep(_EVERY_S)
    if code and not ray.get(board.is_over.remote()):  # the others are ended, and all begin anew
        raise WorkFailedError(f"worker {number} ended with {code}")


def _end_when_asked(process: Any, board: Any) -> None:
    """Ends the process as the board says: first so that it may write a checkpoint."""
    import ray

    asked = False
    while process.poll() is None:
        how = ray.get(board.ending.remote())
        if how == "now":
            process.kill()
        elif how == "soon" and not asked:
            asked = True
            process.terminate()
        time.sleep(_EVERY_S)


def attended() -> None:
    """The command in a process that ends with the one that holds its standard input, also where that is killed."""

    def watch() -> None:
        while os.read(0, 1):  # not sys.stdin, whose lock Python wants when it ends
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    sys.argv[0] = "tfopt"
    runpy.run_module("tfopt", run_name="__main__", alter_sys=False)
