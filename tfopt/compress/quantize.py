"""Quantization-aware training: the model trains with the rounding that its file will have.

Jacob et al., https://arxiv.org/abs/1712.05877. Layers keep their classes and the model its object; only calls
are replaced while it trains, and `finish` gives them back with the weights on their grids.
"""

import dataclasses
import functools
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np

from tfopt._keras import keras_api
from tfopt._keras.precision import computes_narrow, stores_narrow, widen
from tfopt.compress.base import Option, Prepared
from tfopt.errors import InputError
from tfopt.numerics.fake_quant import scale_and_zero
from tfopt.quantization.calls import enter
from tfopt.quantization.config import QuantizeConfig
from tfopt.quantization.plan import PlannedWeight, plan_weights
from tfopt.quantization.record import Grid, Record, attach, record_of
from tfopt.quantization.simulation import Simulation, simulation_of
from tfopt.quantization.weights import assign, make_grid

_log = logging.getLogger(__name__)
_FEW_BITS = 4  # that a search tries
Config = QuantizeConfig


def prepare(model: Any, config: QuantizeConfig) -> Prepared:
    """The same model with rounding in its layers, a callback that shows it in `logs`, and what stays in float."""
    keras_api.check_model(model)
    _make_wide(model)
    if record_of(model) is not None:
        raise InputError(f"model {model.name!r} is already quantized; start from the float model")
    if simulation_of(model) is not None:
        raise InputError(f"model {model.name!r} is already being quantized; call finish(model) first")
    if config.rounding != "nearest" or config.smooth is not None:
        raise InputError("rounding and smooth are for quantization after training; training needs neither")
    if config.rotate:
        raise InputError("rotate is for quantization after training; train tfopt.models.rotated(model) instead")
    plan = plan_weights(model, config)
    for skipped in plan.skipped:
        _log.info("%s stays in float: %s", skipped.path, skipped.reason)
    simulation = Simulation(model, config, plan).install()
    return Prepared(
        model, [QuantizationMonitor()], list(plan.skipped), state=simulation.state,
        enter=functools.partial(enter, simulation),
    )  # fmt: skip


def _make_wide(model: Any) -> None:
    """Lets a model of mixed precision compute in float32: rounding to integers is simulated there."""
    if stores_narrow(model):
        raise InputError(
            f"model {model.name!r} stores weights in 16 bits, in which no step of training is small enough: build "
            "it under the policy 'mixed_float16', 'mixed_bfloat16' or 'float32'"
        )
    if computes_narrow(model):
        _log.warning("model %r is trained in float32 from here on: integers are simulated there", model.name)
        widen(model)


def quantize_aware(
    model: Any, weight_bits: int | None = 8, *, activation_bits: int | None = 8, **settings: Any
) -> Any:
    """Puts the rounding of a quantized file into the model; train it with `fit`, then call `finish`.

    Args:
        model: a built model of either Keras generation, compiled or not; it keeps its class and its weights.
        weight_bits: 2 to 8, or None for float weights.
        activation_bits: 8, 16 (with ``activations="static"``), or None for float activations.
        **settings: further fields of `QuantizeConfig`.

    Returns:
        The same model object.

    Raises:
        InputError: a bad argument, a weight that is not finite, a model that is already quantized; the model
            is then unchanged.
    """
    known = {field.name for field in dataclasses.fields(QuantizeConfig)}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise InputError(f"unknown setting {unknown[0]!r}; known are {', '.join(sorted(known))}")
    return prepare(model, QuantizeConfig(weight_bits, activation_bits, **settings)).model


def finish(model: Any) -> Any:
    """Ends quantization-aware training: a plain Keras model whose weights lie on their grids.

    The grids and ranges go with the model, through `keras_api.save_model` as well, and `export` writes just them.

    Raises:
        InputError: the model is not being quantized, or a weight became NaN.
    """
    simulation = simulation_of(model)
    if simulation is None:
        raise InputError(f"model {model.name!r} is not being quantized; call quantize_aware(model) first")
    keras_api.check_finite(planned.weight for planned in simulation.plan.weights)
    grids = {planned.path: _trained_grid(simulation, planned) for planned in simulation.plan.weights}
    grids = {path: dataclasses.replace(grid, source=grid.values) for path, grid in grids.items()}
    record = Record(simulation.config, grids, simulation.observed(), skipped=simulation.plan.skipped, trained=True)
    simulation.remove()
    for planned in simulation.plan.weights:
        assign(planned, grids[planned.path])
    attach(model, record)
    return model


def is_attached(model: Any) -> bool:
    found = simulation_of(model)
    return found is not None and found.mode == "train"


def explain(model: Any) -> dict[str, str]:
    """Path of a matrix -> "8 bits or fewer", or the reason why it stays in float."""
    plan = plan_weights(model, Config())
    return {**{p.path: "8 bits or fewer" for p in plan.weights}, **{s.path: s.reason for s in plan.skipped}}


def options(model: Any) -> Iterator[Option]:
    """Few bits for each matrix."""
    for planned in plan_weights(model, Config(weight_bits=_FEW_BITS)).weights:
        yield Option("bits", planned.path, _FEW_BITS)


def _trained_grid(simulation: Simulation, planned: PlannedWeight) -> Grid:
    w, clip = simulation.latent(planned)
    scale, zero = scale_and_zero(w, planned.layout, planned.spec, clip=clip)
    if planned.path in simulation.steps:
        scale = simulation.step_size(planned)
    return make_grid(planned, w, scale, zero=zero)


class QuantizationMonitor(keras_api.Callback):
    """Callback that shows what quantization does to the model in `logs`, and so in TensorBoard.

    At the end of each epoch: "quantization_error" is the root of the mean square that rounding takes from the
    weights, relative to theirs; with static activations, "observed_points" counts the ranges and
    "range_change" is the mean relative change of their widths since the epoch before. Put it before TensorBoard.
    """

    def __init__(self) -> None:
        self._supports_tf_logs = True
        self._widths: dict[str, float] = {}

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        simulation = simulation_of(self.model)
        if simulation is None or not isinstance(logs, dict):
            return
        lost = total = 0.0
        for planned in simulation.plan.weights:
            grid = _trained_grid(simulation, planned)
            lost += float(((grid.values - grid.source) ** 2).sum())
            total += float((grid.source**2).sum())
        logs["quantization_error"] = (lost / max(total, 1e-30)) ** 0.5
        widths = {key: high - low for key, (low, high) in simulation.observed().items()}
        if widths:
            logs["observed_points"] = float(len(widths))
            changes = [
                abs(width / max(self._widths[k], 1e-9) - 1) for k, width in widths.items() if k in self._widths
            ]
            logs["range_change"] = float(np.mean(changes)) if changes else 0.0
        self._widths = widths

    def tell(self) -> dict[str, float]:
        """Bits by weight and ranges by activation, for `callbacks.Journal`."""
        simulation = simulation_of(self.model)
        if simulation is None:
            return {}
        told = {f"bits/{planned.path}": float(planned.spec.bits) for planned in simulation.plan.weights}
        for key, (low, high) in simulation.observed().items():
            told |= {f"range/{key}/low": low, f"range/{key}/high": high}
        return told
