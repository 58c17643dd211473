"""Checkpoints of a training that is under way: written while it goes on, whole or not at all."""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfopt._base.files import remove, remove_leftovers, replacing
from tfopt._base.foreign import read_json
from tfopt._keras import keras_api
from tfopt.errors import DataError, InputError, TfoptError
from tfopt.store.codecs import checksum
from tfopt.store.index import INDEX, dtype_of
from tfopt.store.reading import Store
from tfopt.store.writing import save

_POSITION = "position.json"
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Position:
    """How far a training is.

    Attributes:
        epoch: whole passes over the data.
        batch: batches of the next pass.
        step: optimizer steps in all.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0


class Checkpoints(keras_api.Callback):
    """Keras callback that writes weights, optimizer and random state every so many steps, in either generation.

    The step waits for a copy in memory only, which TensorFlow makes of each variable when it is next changed; a
    thread writes it. Where writing takes longer than `every` steps, the newest state is written next. Killed at any
    point, the last checkpoint that was whole is there, and the training goes on from it, bit for bit; only masks of
    dropout are drawn anew in tf_keras, which does not tell where it is in its random numbers. With data in an order
    that does not change from pass to pass (`tfopt.train.fit` takes data of any order):

        checkpoints = tfopt.callbacks.Checkpoints("checkpoints")
        start = checkpoints.restore(model)  # after compile
        first = {"initial_epoch": start.epoch, "epochs": start.epoch + 1}
        model.fit(data.skip(start.batch), callbacks=[checkpoints], **first)
        model.fit(data, callbacks=[checkpoints], initial_epoch=start.epoch + 1, epochs=epochs)

    Args:
        folder: for the checkpoints, each a store of weights (`tfopt.store`).
        every: optimizer steps from one to the next.
        keep: how many are kept.
        extra: further variables of the training, such as those of a simulation.
        writes: whether this process writes; of several workers the chief alone does, and all read.

    Raises:
        InputError: a number below 1.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        every: int = 50,
        keep: int = 2,
        extra: Sequence[Any] = (),
        writes: bool = True,
    ) -> None:
        if every < 1 or keep < 1:
            raise InputError(f"every and keep must be 1 or more, got {every} and {keep}")
        self._folder, self._every, self._keep = Path(folder), every, keep
        self._extra, self._writes = list(extra), writes
        self._epoch = self._before = self._batch = 0
        self._last = 0  # the step of the newest checkpoint
        self._origin = ""
        self._pool: concurrent.futures.ThreadPoolExecutor | None = None
        self._guard = threading.Lock()
        self._newest: tuple[Position, dict[str, np.ndarray]] | None = None
        self._busy = False  # whether the thread will look at what is newest again
        self._supports_tf_logs = True

    def hold(self, variables: Sequence[Any]) -> None:
        """Takes further variables of the training, before anything is restored or written."""
        self._extra += variables

    def held(self, model: Any) -> list[Any]:
        """The variables that a checkpoint copies while the training goes on."""
        return list(_named(model, self._extra).values())

    def restore(self, model: Any) -> Position:
        """Gives a compiled model, and its optimizer, the state of the newest checkpoint that is whole.

        Returns:
            Where the training goes on; its beginning where there is no checkpoint of a training that began with the
            weights that the model has now.
        """
        variables = _named(model, self._extra)
        if self._writes and self._folder.is_dir():
            remove_leftovers(self._folder)
        self._origin = _digest(model)
        for folder in reversed(self._folders()):
            try:
                facts = read_json(folder / _POSITION, "checkpoint")
                position = Position(**{name: int(facts[name]) for name in ("epoch", "batch", "step")})
                if facts["origin"] != self._origin:
                    _log.warning("%s is of a training that began with other weights; it is not used", folder)
                    continue
                _assign(variables, Store(folder))
            except (TfoptError, KeyError, TypeError, ValueError) as error:
                _log.warning("%s cannot be used: %s", folder, error)
                continue
            self._last, self._epoch, self._before = position.step, position.epoch, position.batch
            return position
        return Position()

    def on_train_begin(self, logs: Any = None) -> None:
        self._origin = self._origin or _digest(self.model)
        self._last = max(self._last, keras_api.learning_step(self.model))

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch != self._epoch:
            self._epoch, self._before = epoch, 0
        self._batch = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._batch = batch + 1
        if keras_api.learning_step(self.model) - self._last >= self._every:
            self._submit()

    def keep(self) -> None:
        """Writes a checkpoint of the present state, and waits for it."""
        self._submit()
        self.close()

    def _submit(self) -> None:
        self._last = step = keras_api.learning_step(self.model)
        # By every worker: what each has its own of, as statistics of a batch norm, is read from all of them.
        values = {n: keras_api.snapshot(v) for n, v in _named(self.model, self._extra).items()}
        if not self._writes:
            return
        with self._guard:
            self._newest = Position(self._epoch, self._before + self._batch, step), values
            if not self._busy:
                self._busy = True
                self._pool = self._pool or concurrent.futures.ThreadPoolExecutor(1)
                self._pool.submit(self._write)

    def on_train_end(self, logs: Any = None) -> None:
        self.close()

    def close(self) -> None:
        """Waits for what is being written."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def clear(self) -> None:
        """Removes all checkpoints, after a training that has ended."""
        self.close()
        for folder in self._folders():
            remove(folder)
        with contextlib.suppress(OSError):  # something else is in it
            self._folder.rmdir()

    def _write(self) -> None:
        """The thread's side: writes what is newest until there is nothing new."""
        while True:
            with self._guard:
                if self._newest is None:
                    self._busy = False
                    return
                (position, values), self._newest = self._newest, None
            try:
                self._write_one(position, values)
            except Exception as error:  # noqa: BLE001 - whatever it is, the training goes on
                _log.warning("the checkpoint of step %d could not be written: %s", position.step, error)

    def _write_one(self, position: Position, values: dict[str, np.ndarray]) -> None:
        with replacing(self._folder / f"step-{position.step:09d}") as temporary:
            save(values, temporary, sparse=False)
            facts = {**dataclasses.asdict(position), "origin": self._origin}
            (temporary / _POSITION).write_text(json.dumps(facts), "utf-8")
        own = [folder for folder in self._folders() if self._is_own(folder)]
        for old in {*self._folders()} - {*own[-self._keep :]}:  # those of other trainings as well
            remove(old)

    def _is_own(self, folder: Path) -> bool:
        try:
            return bool(read_json(folder / _POSITION, "checkpoint")["origin"] == self._origin)
        except (TfoptError, KeyError, TypeError):
            return False

    def _folders(self) -> list[Path]:
        """The checkpoints, oldest first."""
        return sorted(path.parent for path in self._folder.glob(f"step-*/{_POSITION}"))


def _named(model: Any, extra: Sequence[Any]) -> dict[str, Any]:
    """All variables of a training by name."""
    model.optimizer.build(model.trainable_variables)
    kinds = {"model": keras_api.state_of(model), "optimizer": list(model.optimizer.variables), "extra": extra}
    return {f"{kind}/{number}": v for kind, found in kinds.items() for number, v in enumerate(found)}


def _assign(variables: dict[str, Any], store: Store) -> None:
    """Gives variables their values; none of them if not all are there."""
    if set(store) != set(variables):
        raise DataError(f"{store.folder / INDEX} has {len(store)} variables, the training has {len(variables)}")
    for name, variable in variables.items():
        tensor, dtype = store.tensors[name], keras_api.tf_variable(variable).dtype.as_numpy_dtype
        if tensor.shape != tuple(variable.shape) or dtype_of(tensor.dtype) != dtype:
            raise DataError(f"{store.folder}: {name} is {tensor.dtype} of {tensor.shape}, not {variable.shape}")
    store.verify()
    for name, variable in variables.items():
        keras_api.tf_variable(variable).assign(np.array(store.unchecked(name)))


def _digest(model: Any) -> str:
    """Of the weights, so that a checkpoint is not taken for that of another training."""
    weights = (checksum(keras_api.snapshot(weight.variable)) for weight in keras_api.weights(model))
    return hashlib.sha256(" ".join(weights).encode()).hexdigest()
