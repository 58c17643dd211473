"""What TensorBoard shows of a training: loss, rate and speed by steps, metrics and techniques by passes."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfopt._keras import keras_api
from tfopt.errors import InputError


class Journal(keras_api.Callback):
    """Keras callback that writes event files for TensorBoard, in either generation, without its package.

    Keras's own callback knows nothing of masks, ranges and bits. Steps are those of the optimizer, so that a
    training that goes on adds to what is there.

    Args:
        folder: for the event files.
        every: steps from one to the next that is written.
        batch_size: rows of a step, for the speed; None to leave it out.
        sources: callbacks of techniques, whose `tell` gives figures by name after each pass; put them before.

    Raises:
        InputError: `every` below 1.
    """

    def __init__(
        self, folder: str | Path, *, every: int = 10, batch_size: int | None = None, sources: Sequence[Any] = ()
    ) -> None:
        if every < 1:
            raise InputError(f"every must be 1 or more, got {every}")
        self._folder, self._every, self._batch_size = Path(folder), every, batch_size
        self._sources = [source for source in sources if hasattr(source, "tell")]
        self._supports_tf_logs = True
        self._writer: Any = None
        self._step = 0
        self._since = time.monotonic()

    def on_train_begin(self, logs: Any = None) -> None:
        self._writer = tf.summary.create_file_writer(str(self._folder))
        self._step, self._since = keras_api.learning_step(self.model), time.monotonic()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        step = keras_api.learning_step(self.model)
        taken = step - self._step
        if taken < self._every:
            return
        now = time.monotonic()
        figures = {f"step/{name}": value for name, value in (logs or {}).items() if not isinstance(value, dict)}
        figures["step/learning_rate"] = keras_api.to_numpy(self.model.optimizer.learning_rate)
        if self._batch_size is not None:
            figures["step/examples_per_s"] = taken * self._batch_size / max(now - self._since, 1e-9)
        self._write(figures, step)
        self._step, self._since = step, now

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        figures = {f"pass/{name}": value for name, value in (logs or {}).items()}
        for source in self._sources:
            figures |= source.tell()
        self._write(figures, keras_api.learning_step(self.model))
        self._since = time.monotonic()  # an evaluation is no training

    def on_train_end(self, logs: Any = None) -> None:
        self._writer.close()

    def _write(self, figures: dict[str, Any], step: int) -> None:
        scalar = tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars")
        metadata = tf.compat.v1.SummaryMetadata(plugin_data=scalar)
        with self._writer.as_default():  # not tf.summary.scalar, which is in TensorBoard's package
            for name, value in figures.items():
                tf.summary.write(name, tf.constant(float(value)), step=step, metadata=metadata)
        self._writer.flush()
