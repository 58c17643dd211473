"""Ranges of activations, observed by several processes with the model as one would have found them."""

import contextlib
import functools
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tfopt._base.spread import Workers
from tfopt._keras import keras_api
from tfopt._keras.keras_io import Inputs, call
from tfopt._keras.loading import load_model
from tfopt.quantization.config import QuantizeConfig
from tfopt.quantization.plan import plan_weights
from tfopt.quantization.points import folded
from tfopt.quantization.simulation import Simulation

Seen = dict[str, tuple[np.ndarray, bool]]  # by point: what one batch shows, and whether the widest of all counts


def observed_by(
    workers: Workers,
    model: Any,
    config: QuantizeConfig,
    *,
    inputs: Inputs,
    batches: Iterable[dict[str, np.ndarray]],
) -> tuple[dict[str, tuple[float, float]], int]:
    """Ranges of the model's points over all batches, and the batches that the point that saw most of them saw.

    Args:
        workers: who observes.
        model: the float model, which goes to them as a file.
        config: what is simulated.
        inputs: how it is called.
        batches: inputs by name.
    """
    by_point: dict[str, list[np.ndarray]] = {}
    widest: dict[str, bool] = {}
    with tempfile.TemporaryDirectory(prefix="tfopt-") as folder:
        path = Path(folder, "model.keras")
        keras_api.save_model(model, path)
        setup = functools.partial(_observer, path, config, inputs)
        with contextlib.closing(workers.each(_seen, ((batch,) for batch in batches), setup=setup)) as found:
            for seen in found:
                for key, (values, is_widest) in seen.items():
                    by_point.setdefault(key, []).append(values)
                    widest[key] = is_widest
    ends = {key: folded(values, config.momentum, widest=widest[key]) for key, values in by_point.items()}
    ranges = {key: (low, high) for key, (low, high, count) in ends.items() if count}
    return ranges, max((count for *_, count in ends.values()), default=0)


def _observer(path: Path, config: QuantizeConfig, inputs: Inputs) -> tuple[Simulation, Inputs]:
    """What a process has: the model, whose layers note what passes."""
    model = load_model(path, trust=True)  # the parent's own
    return Simulation(model, config, plan_weights(model, config), mode="calibrate").install(), inputs


def _seen(observer: tuple[Simulation, Inputs], batch: dict[str, np.ndarray]) -> Seen:
    """What a batch alone shows."""
    simulation, inputs = observer
    for point in simulation.points.values():
        point.forget()
    call(simulation.model, inputs, batch)
    return {key: (point.now().numpy(), point.widest) for key, point in simulation.points.items()}
