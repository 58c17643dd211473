"""Ends a training before its last step, between two steps: its minutes are over, or a signal asks for it."""

import logging
import math
import signal
import threading
import time
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_log = logging.getLogger(__name__)


class Ending:
    """Knows whether a training should end; to be entered around it.

    While it is entered, the first SIGTERM or SIGINT waits until the step that is under way is done and its state is
    kept; what the program does at such a signal is done then, by `pass_on`, and a second signal does it at once.

    Args:
        minutes: from now on, after which the training ends; None for no end.
        title: of the training, for what is logged.
        holds_signals: whether signals wait; they do in the main thread only.
    """

    def __init__(self, minutes: float | None, title: str, *, holds_signals: bool) -> None:
        self._minutes, self._title = minutes, title
        self._end = math.inf if minutes is None else time.monotonic() + 60 * minutes
        self._holds = holds_signals and threading.current_thread() is threading.main_thread()
        self._before: dict[int, Any] = {}
        self._held: tuple[int, FrameType | None] | None = None
        self._over = False

    def __enter__(self) -> "Ending":
        if self._holds:
            # One that is ignored, or was not set from Python, stays what it is.
            held = [n for n in _SIGNALS if signal.getsignal(n) not in (signal.SIG_IGN, None)]
            self._before = {number: signal.signal(number, self._hold) for number in held}
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.pass_on()
        self._give_back()

    @property
    def wanted(self) -> tuple[bool, bool]:
        """Whether the minutes are over, and whether a signal is held."""
        if not self._over and time.monotonic() > self._end:
            self._over = True
            _log.warning("%s ends early: its %g minutes are over", self._title, self._minutes)
        return self._over, self._held is not None

    def pass_on(self) -> bool:
        """Does what the program does at the signal that was held; returns whether there was one."""
        held, self._held = self._held, None
        before = dict(self._before)
        self._give_back()
        if held is None:
            return False
        handler = before[held[0]]
        if callable(handler):
            handler(*held)
        else:
            signal.raise_signal(held[0])
        return True

    def _hold(self, number: int, frame: FrameType | None) -> None:
        if self._held is not None:
            self.pass_on()
            return
        self._held = (number, frame)

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
