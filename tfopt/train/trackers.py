"""Trainings in MLflow and Weights & Biases, through their own Keras callbacks. Each needs an extra of its name.

Where they write is what the program or its environment say: `MLFLOW_TRACKING_URI`, `WANDB_MODE`, `WANDB_PROJECT`.
"""

import contextlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tfopt._keras import keras_api
from tfopt.errors import InputError, WorkFailedError
from tfopt.schedules import Tracker, check_choice


@contextlib.contextmanager
def tracked(
    names: Sequence[Tracker], title: str, settings: Mapping[str, Any], *, sources: Sequence[Any]
) -> Iterator[list[Any]]:
    """Callbacks that tell trackers of a training; each has a run of it while this is entered.

    A run that is under way in the program goes on to be used, MLflow's with one nested in it.

    A training that is resumed is another run of the same name.

    Args:
        names: of trackers, see `check_trackers`.
        title: of the training, the name of the run.
        settings: of the training, kept with the run.
        sources: callbacks of techniques, whose `tell` gives figures by name after each pass.

    Raises:
        InputError: an unknown tracker, or its package is missing.
        WorkFailedError: a tracker could not begin.
    """
    check_trackers(names)
    with contextlib.ExitStack() as stack:
        yield [Told(stack.enter_context(_RUNS[name](title, settings)), sources=sources) for name in names]


def check_trackers(names: Sequence[str]) -> None:
    """Raises InputError for an unknown tracker, or one whose package is missing."""
    for name in names:
        check_choice("tracker", name, tuple(_RUNS))
        if importlib.util.find_spec(name) is None:
            raise InputError(f"tracking needs another package: pip install 'tfopt[{name}]'")


class Told(keras_api.Callback):
    """A tracker's callback, which is told the figures of techniques with those of a pass.

    Args:
        callback: of the tracker.
        sources: as for `tracked`.
    """

    def __init__(self, callback: Any, *, sources: Sequence[Any]) -> None:
        self._callback, self._sources = callback, [one for one in sources if hasattr(one, "tell")]
        self._supports_tf_logs = False

    def set_model(self, model: Any) -> None:
        super().set_model(model)
        self._callback.set_model(model)

    def on_train_begin(self, logs: Any = None) -> None:
        self._callback.on_train_begin(logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        figures = {name: float(value) for name, value in (logs or {}).items()}
        for source in self._sources:
            figures |= {name: float(value) for name, value in source.tell().items()}
        self._callback.on_epoch_end(epoch, figures)

    def on_train_end(self, logs: Any = None) -> None:
        self._callback.on_train_end(logs)


@contextlib.contextmanager
def _mlflow(title: str, settings: Mapping[str, Any]) -> Iterator[Any]:
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.keras.callback import MlflowCallback

    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(mlflow.start_run(run_name=title, nested=mlflow.active_run() is not None))
            mlflow.log_params(dict(settings))
        except MlflowException as error:
            raise WorkFailedError(f"MLflow could not begin a run: {error}") from error
        yield MlflowCallback()


@contextlib.contextmanager
def _wandb(title: str, settings: Mapping[str, Any]) -> Iterator[Any]:
    import wandb
    from wandb.integration.keras import WandbMetricsLogger

    if wandb.run is not None:  # the program's own
        wandb.run.config.update(dict(settings), allow_val_change=True)
        yield WandbMetricsLogger()
        return
    try:
        run = wandb.init(name=title, config=dict(settings))
    except wandb.Error as error:
        raise WorkFailedError(f"Weights & Biases could not begin a run: {error}") from error
    with run:  # which ends as failed where the training does
        yield WandbMetricsLogger()


_RUNS = {"mlflow": _mlflow, "wandb": _wandb}
