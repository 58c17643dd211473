"""Progress of a training on standard error: a bar on a terminal, a plain line now and then elsewhere."""

import sys
import time
from typing import Any

from tfopt._keras import keras_api

_SECONDS_BETWEEN_LINES = 15.0


class Progress(keras_api.Callback):
    """Keras callback that shows step, loss, accuracy and the time that is left.

    Args:
        title: what is being trained.
        steps: optimizer steps in all.
    """

    def __init__(self, title: str, steps: int) -> None:
        self._title, self._steps = title, steps
        self._supports_tf_logs = True
        self._done = 0
        self._started = self._shown = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def on_train_begin(self, logs: Any = None) -> None:
        self._started = self._shown = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._shown >= (0.2 if self._terminal else _SECONDS_BETWEEN_LINES):
            self._shown = now
            self._show(logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._show(logs, f" epoch {epoch + 1}")
        if self._terminal:
            print(file=sys.stderr)  # noqa: T201

    def _show(self, logs: Any, where: str = "") -> None:
        elapsed = time.monotonic() - self._started
        left = elapsed / max(self._done, 1) * max(self._steps - self._done, 0)
        values = " ".join(f"{name} {float(value):.4f}" for name, value in (logs or {}).items())
        line = f"{self._title}:{where} step {self._done}/{self._steps} {values} ({left:.0f} s left)"
        if self._terminal:
            print(f"\r\x1b[2K{line}", end="", file=sys.stderr, flush=True)  # noqa: T201
        else:
            print(line, file=sys.stderr, flush=True)  # noqa: T201
