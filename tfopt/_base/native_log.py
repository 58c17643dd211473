"""What native libraries write to standard error, kept from those who read it."""

import contextlib
import faulthandler
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

# The one standard error of the process: where it went before, and one entry more for each that wants it aside.
_LOCK = threading.Lock()
_ASIDE: list[int] = []


class NativeLog:
    """What native libraries write to the process's standard error, in a file."""

    def __init__(self, path: Path) -> None:
        self.path, self.keep = path, False

    def kept(self) -> str:
        """Keeps the file and returns the words that point to it; nothing if it is empty."""
        self.keep = self.path.stat().st_size > 0
        return f" (native log: {self.path})" if self.keep else ""


@contextlib.contextmanager
def native_log_aside() -> Iterator[NativeLog]:
    """Leaves standard error to Python alone.

    TensorFlow's C++ side greets with a dozen lines that no setting turns off; among them one clear line
    about a bad input would be lost. They go to a file that is kept if the work fails.
    """
    descriptor, name = tempfile.mkstemp(prefix="tfopt-native-", suffix=".log")
    log = NativeLog(Path(name))
    with _native_to(descriptor):
        faulthandler.enable(sys.stderr)  # a crash in native code still says where
        try:
            yield log
        finally:
            faulthandler.disable()
            if not log.keep:
                log.path.unlink(missing_ok=True)


@contextlib.contextmanager
def native_greetings_aside() -> Iterator[None]:
    """Likewise while libraries are loaded, or a process is started that loads some: what they say is dropped.

    Standard error is the whole process's: of several threads, the first puts it aside and the last gives it back.
    What Python writes there meanwhile, through `sys.stderr` as it is, goes with it; handlers of logs stay whole.
    """
    with _LOCK:
        if not _ASIDE:
            _ASIDE.append(os.dup(2))
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, 2)
            os.close(nothing)
        else:
            _ASIDE.append(-1)
    try:
        yield
    finally:
        with _LOCK:
            if len(_ASIDE) == 1:
                os.dup2(_ASIDE[0], 2)
                os.close(_ASIDE[0])
                _ASIDE.clear()
            else:
                _ASIDE.remove(-1)


@contextlib.contextmanager
def _native_to(descriptor: int) -> Iterator[None]:
    """Native words go to an open file, which is closed; those of Python where they went before."""
    ours, original = os.dup(2), sys.stderr
    sys.stderr = os.fdopen(ours, "w", buffering=1, errors="backslashreplace")
    os.dup2(descriptor, 2)
    os.close(descriptor)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(ours, 2)
        shown, sys.stderr = sys.stderr, original
        shown.close()


def quiet_exit() -> None:
    """Leaves standard error to Python alone until the process ends: LiteRT talks when its globals are freed."""
    sys.stderr.flush()
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    os.close(nothing)
