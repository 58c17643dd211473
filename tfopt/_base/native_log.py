"""What native libraries write to standard error, kept from those who read it."""

import contextlib
import faulthandler
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path


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
    """Likewise while libraries are loaded, or a process is started that loads some: what they say is dropped."""
    with _native_to(os.open(os.devnull, os.O_WRONLY)):
        yield


@contextlib.contextmanager
def _native_to(descriptor: int) -> Iterator[None]:
    """Native words go to an open file, which is closed; those of Python where they went before."""
    ours, shown, original = os.dup(2), None, sys.stderr
    if original is sys.__stderr__:  # a notebook's goes elsewhere anyway
        sys.stderr = shown = os.fdopen(os.dup(ours), "w", buffering=1, errors="backslashreplace")
    os.dup2(descriptor, 2)
    os.close(descriptor)
    try:
        yield
    finally:
        os.dup2(ours, 2)
        os.close(ours)
        if shown is not None:
            sys.stderr = original
            shown.close()


def quiet_exit() -> None:
    """Leaves standard error to Python alone until the process ends: LiteRT talks when its globals are freed."""
    sys.stderr.flush()
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    os.close(nothing)
