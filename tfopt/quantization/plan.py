"""Which weights get which grid, and why the others stay in float."""

import dataclasses
from typing import Any

from tfopt._keras import keras_api
from tfopt._keras.keras_api import Weight
from tfopt._keras.selection import Selection, Skipped
from tfopt.errors import InputError
from tfopt.numerics.grids import Layout, WeightSpec
from tfopt.quantization.config import QuantizeConfig
from tfopt.quantization.kinds import input_width, layouts, role, why_float


@dataclasses.dataclass(frozen=True)
class PlannedWeight:
    """A weight that is quantized.

    Attributes:
        weight: the weight and its layer.
        layout: which of its axes are summed over.
        spec: its grid.
        note: why the grid is not the one that the configuration names, or "".
    """

    weight: Weight
    layout: Layout
    spec: WeightSpec
    note: str = ""

    @property
    def path(self) -> str:
        return self.weight.path


@dataclasses.dataclass(frozen=True)
class QuantizationPlan:
    """The weights of a model that are quantized, and the other matrices with the reason why not."""

    weights: tuple[PlannedWeight, ...]
    skipped: tuple[Skipped, ...]


def plan_weights(model: Any, config: QuantizeConfig) -> QuantizationPlan:
    """Decides for every weight of the model; nothing is changed.

    Raises:
        InputError: a weight that is not finite (named), a pattern that matches nothing, include and exclude
            that contradict each other, nothing to quantize, or with `strict` a layer of unknown type.
    """
    selection = Selection(model, config.include, config.exclude)
    for pattern in config.bits:
        Selection(model, include=pattern)  # raises if it matches nothing
    chosen: list[PlannedWeight] = []
    skipped: list[Skipped] = []
    for weight in selection.weights:
        if len(weight.variable.shape) < 2 or weight.name == "bias":  # those of MultiHeadAttention are matrices
            continue
        found = _decide(selection, weight, config)
        if isinstance(found, Skipped):
            skipped.append(found)
        else:
            chosen.append(found)
    if not chosen and config.weight_bits is not None:
        reasons = "; ".join(f"{s.path}: {s.reason}" for s in skipped[:3]) or "it has no matrices"
        raise InputError(f"nothing to quantize in model {model.name!r} ({reasons})")
    keras_api.check_finite(planned.weight for planned in chosen)
    _check_names(chosen)
    return QuantizationPlan(tuple(chosen), tuple(skipped))


def _check_names(chosen: list[PlannedWeight]) -> None:
    """Raises InputError for weights that cannot be told apart, or layers whose arithmetic is already narrow."""
    paths = [planned.path for planned in chosen]
    double = next((path for path in paths if paths.count(path) > 1), None)
    if double is not None:
        raise InputError(f"two weights are named {double!r}; give their layers different names")
    for planned in chosen:
        dtype = str(getattr(planned.weight.layer, "compute_dtype", "float32"))
        if dtype in ("float16", "bfloat16"):
            raise InputError(
                f"layer {planned.weight.layer_path!r} computes in {dtype}; quantization needs the policy 'float32'"
            )


def _decide(selection: Selection, weight: Weight, config: QuantizeConfig) -> PlannedWeight | Skipped:
    reason = selection.reason_to_skip(weight)
    if reason is not None:
        return Skipped(weight.path, reason)
    layout = layouts(weight.layer).get(weight.name)
    if layout is None:
        return _unknown(weight, config)
    kind = role(weight.layer)
    bits = _bits(selection, weight, config, is_table=kind == "table")
    if bits is None:
        return Skipped(weight.path, "float was asked for")
    if not layout.inputs:
        return Skipped(weight.path, "its product sums over no axis")
    spec, note = config.spec(bits, kind == "table"), ""
    if isinstance(spec.granularity, int):
        width = input_width(weight.layer, tuple(weight.variable.shape), layout)
        if not layout.blocks or width % spec.granularity:
            why = f"{width} inputs do not divide into blocks of {spec.granularity}"
            note = f"one scale per channel: {why if layout.blocks else 'its operator takes no blocks'}"
            spec = spec._replace(granularity="channel", symmetric=True)
    return PlannedWeight(weight, layout, spec, note=note)


def _unknown(weight: Weight, config: QuantizeConfig) -> Skipped:
    known = why_float(weight.layer)
    if known is None and role(weight.layer) == "unknown":
        known = f"layer type {type(weight.layer).__name__} is not known"
        if config.strict:
            raise InputError(
                f"weight {weight.path!r}: {known}; exclude it, build the layer from known ones, or drop strict=True"
            )
    return Skipped(weight.path, known or f"{type(weight.layer).__name__}.{weight.name} is no kernel or table")


def _bits(selection: Selection, weight: Weight, config: QuantizeConfig, is_table: bool) -> int | None:
    bits = config.table_bits if is_table and config.table_bits is not None else config.weight_bits
    for pattern, value in config.bits.items():
        if selection.matches(weight, pattern):
            bits = value
    return bits
