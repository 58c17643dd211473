"""Work in processes of its own: a crash stays there, memory is its own, and a start costs a fork.

Processes are forked from servers of `multiprocessing`, which have loaded what they need before. The servers are
ours: those of the program's own `multiprocessing` stay as they are, and its main module is not run again in a
child.
"""

import contextlib
import functools
import gc
import io
import multiprocessing.connection
import os
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import context, forkserver, popen_forkserver, process, reduction, spawn, util
from pathlib import Path
from typing import Any

from tfopt._base.native_log import native_greetings_aside
from tfopt.errors import TfoptError

# What a server loads before it forks. Measurements of memory need processes that begin with nothing.
LIGHT: tuple[str, ...] = ("numpy",)
WARM: tuple[str, ...] = (
    "tensorflow",
    "tensorflow.lite.python.lite",
    "tfopt.runtime.tflite",
    "tfopt.runtime.saved_model",
    "tfopt.export.convert",
)
_ENDING_S = 10.0


class ChildFailedError(TfoptError, RuntimeError):
    """A child process ended without a result; the message holds its last words."""


def run_in_child(
    function: Callable[..., Any],
    *arguments: Any,
    preload: tuple[str, ...] = WARM,
    timeout_s: float = 600,
    memory: int | None = None,
    log: Callable[[str], None] | None = None,
) -> Any:
    """Calls a function in a process of its own.

    Args:
        function: of a module that can be imported; where `log` is given it is called with one more argument, a
            function that passes lines on to it.
        *arguments: are pickled, as is what the function returns.
        preload: `WARM` or `LIGHT`.
        timeout_s: seconds until the process is ended.
        memory: bytes of addresses that it may take beyond those that it has from the server; None for any. Systems
            other than Linux do not keep to it.
        log: takes the lines.

    Raises:
        ChildFailedError: the process crashed, took too long, or the function raised something else than a
            `TfoptError`, which is raised here as well.
    """
    ours, theirs = multiprocessing.connection.Pipe()
    with tempfile.TemporaryDirectory(prefix="tfopt-") as folder, ours:
        words = Path(folder, "stderr")
        child = Child(preload, _answer, (function, arguments, log is not None, memory, theirs, str(words)))
        child.start()
        theirs.close()
        try:
            return _follow(child, ours, words, end=time.monotonic() + timeout_s, log=log)
        except BaseException:  # interrupted: the child must not go on alone
            child.kill()
            raise
        finally:
            child.join(_ENDING_S)


def warm_up() -> None:
    """Lets the server of `WARM` load what it needs meanwhile."""
    _server(WARM).ensure_running()


def _follow(child: "Child", pipe: Any, words: Path, end: float, log: Callable[[str], None] | None) -> Any:
    """What the child sends: lines, and then a result or an error."""
    while True:
        if not pipe.poll(max(0.0, end - time.monotonic())):
            raise ChildFailedError(f"no answer within the time that was given, {child.what}")
        try:
            kind, value = pipe.recv()
        except EOFError:
            child.join(_ENDING_S)
            code = child.exitcode or 0
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise ChildFailedError(f"a child process ended ({how}): {_last_line(words)}") from None
        if kind == "line" and log is not None:
            log(value)
        elif kind == "result":
            return value
        elif kind == "error":
            raise value


def _last_line(words: Path) -> str:
    lines = words.read_text("utf-8", "replace").splitlines() if words.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "no message")


class Child(process.BaseProcess):
    """A process that is forked from the server with its preload, and ends with its parent."""

    _start_method = "forkserver"

    def __init__(self, preload: tuple[str, ...], target: Callable[..., None], work: tuple[Any, ...]) -> None:
        super().__init__(target=_ending_with_parent, args=(target, *work), daemon=False)
        self.preload = preload
        self.what = f"calling {work[0].__module__}.{work[0].__qualname__}"

    @staticmethod
    def _Popen(process_obj: Any) -> "_Popen":
        return _Popen(process_obj)


class _Popen(popen_forkserver.Popen):
    """As the one of `multiprocessing`, from a server of ours and without the main module of the program."""

    def _launch(self, process_obj: Any) -> None:
        facts = spawn.get_preparation_data(process_obj._name)
        facts = {name: value for name, value in facts.items() if not name.startswith("init_main")}
        buffer = io.BytesIO()
        context.set_spawning_popen(self)
        try:
            reduction.dump(facts, buffer)
            reduction.dump(process_obj, buffer)
        finally:
            context.set_spawning_popen(None)
        self.sentinel, writer = _server(process_obj.preload).connect_to_new_process(self._fds)  # type: ignore[attr-defined]
        kept = os.dup(writer)  # tells the child when its parent is gone
        self.finalizer = util.Finalize(self, _close, (kept, self.sentinel))
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(buffer.getbuffer())
        self.pid = forkserver.read_signed(self.sentinel)


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


class _Server(forkserver.ForkServer):
    """Starts without what native libraries say when they are loaded."""

    _started = False

    def ensure_running(self) -> None:
        with contextlib.nullcontext() if self._started else native_greetings_aside():
            super().ensure_running()
        self._started = True


@functools.cache
def _server(preload: tuple[str, ...]) -> Any:
    server = _Server()
    server.set_forkserver_preload(list(preload))
    return server


def _answer(
    function: Callable[..., Any], arguments: tuple[Any, ...], lines: bool, memory: int | None, pipe: Any, words: str
) -> None:
    """The child's side."""
    if memory is not None:
        limit_memory(memory)
    with _native_words_in(words):
        try:
            more = (lambda line: pipe.send(("line", line)),) if lines else ()
            result = function(*arguments, *more)
        except TfoptError as error:
            pipe.send(("error", error))
        except Exception as error:  # noqa: BLE001 - whatever a runtime raises is told to the parent
            traceback.print_exc()
            last = str(error).strip().splitlines()
            said = f"{type(error).__name__}: {last[0] if last else ''}"
            pipe.send(("error", ChildFailedError(f"a child process failed: {said}")))
        else:
            pipe.send(("result", result))
    pipe.close()


def _ending_with_parent(target: Callable[..., None], *work: Any) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    gc.freeze()  # what the server loaded is neither searched for garbage again and again, nor copied for that
    target(*work)


def limit_memory(more: int) -> None:
    """Lets this process take so many bytes of addresses more than it has; on Linux."""
    status = Path("/proc/self/statm")
    if status.exists():
        import resource

        used = int(status.read_text().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        soft = used + more if hard == resource.RLIM_INFINITY else min(used + more, hard)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _end_with_parent() -> None:
    """Ends this process when its parent is gone, killed for one, so that nothing goes on alone."""
    parent = process.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def _native_words_in(path: str) -> Iterator[None]:
    """Standard output and error of the process go to a file, from which the last words are read after a crash."""
    with Path(path).open("w", buffering=1, encoding="utf-8") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
        with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            yield
    sys.stderr = sys.__stderr__
