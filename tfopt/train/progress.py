"""Progress of a training on standard error: a bar on a terminal, a plain line now and then elsewhere."""

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from tfopt._keras import keras_api

_SECONDS_BETWEEN_LINES = 15.0


class Progress(keras_api.Callback):
    """Keras callback that shows step, losses, metrics and the time that is left; to be entered around `fit`.

    Args:
        title: what is being trained.
        steps: optimizer steps in all.
        done: of them before.
        batch_size: rows of a step.
    """

    def __init__(self, title: str, steps: int, done: int = 0, *, batch_size: int) -> None:
        self._title, self._steps, self._batch_size = title, steps, batch_size
        self._supports_tf_logs = True
        self._done = self._before = done
        self._started = self._shown = time.monotonic()
        self._bar = _bar() if sys.stderr.isatty() else None

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=self._steps, values="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._shown >= (0.2 if self._bar is not None else _SECONDS_BETWEEN_LINES):
            self._shown = now
            self._show(logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._show(logs, f" epoch {epoch + 1}")

    def _show(self, logs: Any, where: str = "") -> None:
        values = " ".join(f"{name} {float(value):.4f}" for name, value in (logs or {}).items())
        elapsed = time.monotonic() - self._started
        taken = max(self._done - self._before, 1)
        speed = f"{taken * self._batch_size / max(elapsed, 1e-9):,.0f} examples/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, values=f"{values} {speed}")
            return
        left = elapsed / taken * max(self._steps - self._done, 0)
        line = f"{self._title}:{where} step {self._done}/{self._steps} {values} ({speed}, {left:.0f} s left)"
        print(line, file=sys.stderr, flush=True)  # noqa: T201


def _bar() -> Bar:
    return Bar(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[values]}"), console=Console(stderr=True),
    )  # fmt: skip
