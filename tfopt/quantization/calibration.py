"""Quantization without training: grids by rounding, ranges by running representative data through the model."""

import dataclasses
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from tfopt._base.spread import ALONE, Workers
from tfopt._keras import keras_api
from tfopt._keras.keras_io import Inputs, call
from tfopt.errors import InputError, WorkFailedError
from tfopt.quantization.config import QuantizeConfig
from tfopt.quantization.gptq import Rounded, gptq
from tfopt.quantization.kinds import class_names, einsum_input_axes, role
from tfopt.quantization.observing import observed_by
from tfopt.quantization.plan import PlannedWeight, QuantizationPlan, plan_weights
from tfopt.quantization.record import Grid, Record
from tfopt.quantization.simulation import Simulation, watched_inputs
from tfopt.quantization.weights import round_to_nearest

BATCH = 8


@dataclasses.dataclass(frozen=True)
class Improved:
    """What GPTQ did: matrices it rounded better than to nearest, of how many, and the mean ratio of errors."""

    better: int
    tried: int
    error_ratio: float


def quantize_weights(
    model: Any, config: QuantizeConfig, inputs: Inputs | None = None, samples: dict[str, np.ndarray] | None = None
) -> tuple[Record, Improved | None]:
    """Grids for the model's weights as they are; the model is not changed.

    Args:
        model: the float model.
        config: the grids.
        inputs: how it is called; for GPTQ.
        samples: representative inputs by name; for GPTQ.
    """
    plan = plan_weights(model, config)
    grids: dict[str, Grid] = {}
    for planned in plan.weights:
        value = keras_api.to_numpy(planned.weight.variable).astype(np.float32)
        grids[planned.path] = round_to_nearest(planned, value, config.weight_scale != "max")
    improved = None
    if config.rounding == "gptq":
        assert inputs is not None and samples is not None
        improved = _improve(model, plan, grids, inputs=inputs, samples=samples)
    return Record(config, grids, {}, skipped=plan.skipped, trained=False), improved


def _improve(
    model: Any, plan: QuantizationPlan, grids: dict[str, Grid], inputs: Inputs, samples: dict[str, np.ndarray]
) -> Improved:
    """Replaces grids of matrices by those of GPTQ where they are better, in place."""
    products = [p for p in plan.weights if role(p.weight.layer) == "product" and _sums_last_axes(p)]
    matrices = {id(p.weight.layer): p for p in products}
    hessians: dict[str, np.ndarray] = {}

    def watch(layer: Any, x: Any) -> None:
        planned = matrices.get(id(layer))
        if planned is None:
            return
        rows = np.asarray(x, np.float64).reshape(-1, grids[planned.path].source.shape[1])
        hessians[planned.path] = hessians.get(planned.path, 0) + rows.T @ rows

    with watched_inputs(model, watch):
        for batch in batches_of(samples):
            call(model, inputs, batch)
    results = {path: gptq(grids[path], hessian) for path, hessian in hessians.items()}
    grids.update({path: result.grid for path, result in results.items()})
    return improvement(results.values())


def improvement(results: Collection[Rounded]) -> Improved:
    """What GPTQ did to matrices."""
    ratios = [min(r.error / max(r.error_nearest, 1e-30), 1.0) for r in results]
    return Improved(sum(r.improved for r in results), len(results), float(np.mean(ratios)) if ratios else 1.0)


def _sums_last_axes(planned: PlannedWeight) -> bool:
    """Whether the layer's input, flattened from the end, has its axes in the order of the kernel's rows."""
    if not planned.layout.blocks:
        return False
    if "EinsumDense" not in class_names(planned.weight.layer):
        return True
    axes = einsum_input_axes(planned.weight.layer)
    return axes == tuple(range(-len(axes), 0))


def batches_of(samples: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    """The samples in batches."""
    for start in range(0, len(next(iter(samples.values()))), BATCH):
        yield {name: value[start : start + BATCH] for name, value in samples.items()}


def calibrate(
    model: Any, record: Record, inputs: Inputs, samples: dict[str, np.ndarray], workers: Workers = ALONE
) -> tuple[Record, int]:
    """Adds the ranges of activations that `samples` produce.

    Args:
        model: the float model; it is not changed.
        record: its grids.
        inputs: how it is called.
        samples: inputs by name, checked.
        workers: who runs them; the ranges are the same but where a batch goes through a layer several times, see
            `points.folded`.

    Returns:
        The record with ranges, and the number of rows that were run.

    Raises:
        InputError: samples that are all the same.
        WorkFailedError: nothing was observed, or an activation became NaN or infinite.
    """
    check_varied(samples)
    rows = len(next(iter(samples.values())))
    if workers.elsewhere:
        ranges, count = observed_by(workers, model, record.config, inputs=inputs, batches=batches_of(samples))
    else:
        ranges, count = _observed(model, record.config, inputs, samples=samples)
    if count < -(-rows // BATCH):
        raise WorkFailedError(f"calibration did not run: {count} of {-(-rows // BATCH)} batches seen")
    for key, (low, high) in ranges.items():
        if not np.isfinite([low, high]).all():
            raise WorkFailedError(f"activation {key!r} became NaN or infinite on the representative data")
    return dataclasses.replace(record, ranges=ranges), rows


def _observed(
    model: Any, config: QuantizeConfig, inputs: Inputs, samples: dict[str, np.ndarray]
) -> tuple[dict[str, tuple[float, float]], int]:
    """Ranges, and the batches that the point that saw most of them saw."""
    simulation = Simulation(model, config, plan_weights(model, config), mode="calibrate").install()
    try:
        for batch in batches_of(samples):
            call(model, inputs, batch)
        return simulation.observed(), max((point.value()[2] for point in simulation.points.values()), default=0)
    finally:
        simulation.remove()


def check_varied(samples: dict[str, np.ndarray]) -> None:
    """Raises InputError if every row of every input is the same: such data shows no range."""
    if all((value == value[:1]).all() for value in samples.values()):
        rows = len(next(iter(samples.values())))
        raise InputError(
            f"representative data is constant: all {rows} rows are the same; pass rows as the model will meet them"
        )
