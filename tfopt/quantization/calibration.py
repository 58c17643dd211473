"""Quantization without training: grids by rounding, ranges by running representative data through the model."""

import dataclasses
from typing import Any

import numpy as np

from tfopt import keras_api
from tfopt.errors import InputError, WorkFailedError
from tfopt.keras_io import Inputs, call
from tfopt.quantization.config import QuantizeConfig
from tfopt.quantization.plan import plan_weights
from tfopt.quantization.record import Grid, Record
from tfopt.quantization.simulation import Simulation
from tfopt.quantization.weights import round_to_nearest

BATCH = 8


def quantize_weights(model: Any, config: QuantizeConfig) -> Record:
    """Grids for the model's weights as they are; the model is not changed."""
    plan = plan_weights(model, config)
    grids: dict[str, Grid] = {}
    for planned in plan.weights:
        value = keras_api.to_numpy(planned.weight.variable).astype(np.float32)
        grids[planned.path] = round_to_nearest(planned, value, config.weight_scale != "max")
    return Record(config, grids, {}, plan.skipped, trained=False)


def calibrate(model: Any, record: Record, inputs: Inputs, samples: dict[str, np.ndarray]) -> tuple[Record, int]:
    """Adds the ranges of activations that `samples` produce.

    Args:
        model: the float model; it is not changed.
        record: its grids.
        inputs: how it is called.
        samples: inputs by name, checked.

    Returns:
        The record with ranges, and the number of rows that were run.

    Raises:
        InputError: samples that are all the same.
        WorkFailedError: nothing was observed, or an activation became NaN or infinite.
    """
    check_varied(samples)
    rows = len(next(iter(samples.values())))
    plan = plan_weights(model, record.config)
    simulation = Simulation(model, record.config, plan, "calibrate").install()
    try:
        for start in range(0, rows, BATCH):
            call(model, inputs, {name: value[start : start + BATCH] for name, value in samples.items()})
        ranges = simulation.observed()
        counts = [point.value()[2] for point in simulation.points.values()]
    finally:
        simulation.remove()
    if max(counts, default=0) < -(-rows // BATCH):
        raise WorkFailedError(
            f"calibration did not run: {max(counts, default=0)} of {-(-rows // BATCH)} batches seen"
        )
    for key, (low, high) in ranges.items():
        if not np.isfinite([low, high]).all():
            raise WorkFailedError(f"activation {key!r} became NaN or infinite on the representative data")
    return dataclasses.replace(record, ranges=ranges), rows


def check_varied(samples: dict[str, np.ndarray]) -> None:
    """Raises InputError if every row of every input is the same: such data shows no range."""
    if all((value == value[:1]).all() for value in samples.values()):
        rows = len(next(iter(samples.values())))
        raise InputError(
            f"representative data is constant: all {rows} rows are the same; pass rows as the model will meet them"
        )
