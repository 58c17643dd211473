"""What is to be quantized and how: one configuration for training, post-training and the file."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, Literal

from tfopt.errors import InputError
from tfopt.numerics.grids import Granularity, WeightSpec

BLOCKS = (32, 64, 128)
Activations = Literal["none", "dynamic", "static"]
WeightScale = Literal["max", "mse", "learned"]
Rounding = Literal["nearest", "gptq"]
ActivationRange = Literal["moving_average", "learned"]


@dataclasses.dataclass(frozen=True)
class QuantizeConfig:
    """How a model is quantized. The defaults are right for running on a CPU.

    Attributes:
        weight_bits: bits of kernels and lookup tables, 2 to 8; None leaves weights in float.
        activation_bits: 8, or 16 with static ranges; None leaves activations in float.
        activations: "dynamic" looks for the range of each row while running, "static" fixes one range per
            tensor, for integer-only devices; "none" is what `activation_bits=None` means.
        weight_granularity: one scale per "channel", per "tensor", or per block of 32, 64 or 128 inputs.
        weight_symmetric: False spans each group from its lowest to its highest weight; files carry that with
            float activations, and in blocks, whose lowest values are kept in 8 bits. Weights that came in such
            blocks, as those of GGUF files often do, keep their values.
        activation_symmetric: ranges symmetric around zero; always so with 16 bits.
        weight_scale: "max" reaches the largest weight of each group; "mse" clips it where that lowers the
            squared error (found when quantization starts); "learned" trains the step size (LSQ), which adds
            trainable variables: compile the model afterwards.
        activation_range: of static activations, "moving_average" or "learned".
        momentum: share of the old range that a moving average keeps at each step.
        bits: bits by layer, as pattern -> 2 to 8 or None for float; the last match counts.
        table_bits: bits of lookup tables, if not `weight_bits`.
        rounding: of weights after training, "nearest", or "gptq" which looks at what each layer is fed; needs
            data.
        smooth: after training, share of the spread of activations that is moved into weights, above 0 and below
            1: SmoothQuant, and with fewer than 8 bits AWQ; None moves nothing. Needs data.
        rotate: of decoders, after training: turn channels so that none reaches far, `models.rotated`. The file is
            that of the turned model, which multiplies a little more for each token.
        warmup_steps: training steps before rounding starts; ranges are already observed.
        freeze_after: training step after which static ranges no longer move; None never freezes.
        preserve_sparsity: exact zeros of a pruned kernel stay zero while training.
        include: name patterns, layer class names or classes; only what matches is quantized.
        exclude: likewise; what matches stays in float.
        strict: a layer type that is not known is an error instead of staying in float.

    Raises:
        InputError: a value outside its range, or two that contradict each other.
    """

    weight_bits: int | None = 8
    activation_bits: int | None = 8
    activations: Activations = "dynamic"
    weight_granularity: Granularity = "channel"
    weight_symmetric: bool = True
    activation_symmetric: bool = False
    weight_scale: WeightScale = "max"
    activation_range: ActivationRange = "moving_average"
    momentum: float = 0.99
    bits: Mapping[str, int | None] = dataclasses.field(default_factory=dict)
    table_bits: int | None = None
    rounding: Rounding = "nearest"
    smooth: float | None = None
    rotate: bool = False
    warmup_steps: int = 0
    freeze_after: int | None = None
    preserve_sparsity: bool = True
    include: Any = None
    exclude: Any = None
    strict: bool = False

    def __post_init__(self) -> None:
        for name, value in (("weight_bits", self.weight_bits), ("table_bits", self.table_bits)):
            check_bits(value, name)
        for pattern, value in self.bits.items():
            check_bits(value, f"bits[{pattern!r}]")
        self._check_choice("activations", Activations)
        self._check_choice("weight_scale", WeightScale)
        self._check_choice("activation_range", ActivationRange)
        self._check_choice("rounding", Rounding)
        if self.smooth is not None and not 0 < self.smooth < 1:
            raise InputError(f"smooth must be above 0 and below 1, got {self.smooth}")
        if self.activation_bits is None and self.activations != "none":
            object.__setattr__(self, "activations", "none")
        if self.activations == "none":
            object.__setattr__(self, "activation_bits", None)
        self._check_activations()
        self._check_weights()
        if self.warmup_steps < 0:
            raise InputError(f"warmup_steps must be 0 or more, got {self.warmup_steps}")
        if self.freeze_after is not None and self.freeze_after < self.warmup_steps:
            raise InputError(
                f"freeze_after must not come before warmup_steps, got {self.freeze_after} and {self.warmup_steps}"
            )
        if not 0 <= self.momentum < 1:
            raise InputError(f"momentum must be in [0, 1), got {self.momentum}")

    def _check_choice(self, name: str, choices: Any) -> None:
        known = typing.get_args(choices)
        if getattr(self, name) not in known:
            raise InputError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")

    def _check_activations(self) -> None:
        allowed = {"none": (None,), "dynamic": (8,), "static": (8, 16)}[self.activations]
        if self.activation_bits not in allowed:
            text = " or ".join(str(b) for b in allowed)
            raise InputError(
                f"activation_bits must be {text} with activations={self.activations!r}, "
                f"got {self.activation_bits!r}"
            )
        if self.activation_bits == 16:
            object.__setattr__(self, "activation_symmetric", True)  # the only kind that runtimes have
        if self.is_static and self.weight_bits is None:
            raise InputError("static activations need weight_bits; integer products cannot have float weights")
        if self.activation_range == "learned" and not self.is_static:
            raise InputError("activation_range='learned' needs activations='static'; other ranges are not stored")

    def _check_weights(self) -> None:
        grain = self.weight_granularity
        if grain not in ("tensor", "channel", *BLOCKS) or isinstance(grain, bool):
            raise InputError(f"weight_granularity must be 'tensor', 'channel', 32, 64 or 128, got {grain!r}")
        if isinstance(grain, int) and self.activations != "dynamic":
            raise InputError(  # LiteRT multiplies such weights, but does not widen them
                f"weight_granularity={grain} needs activations='dynamic', got {self.activations!r}"
            )
        if isinstance(grain, int) and (self.weight_bits or 0) > 4:
            raise InputError(
                f"weight_granularity={grain} needs 4 bits or less (runtimes have no 8-bit blocks), "
                f"got {self.weight_bits}"
            )
        if not self.weight_symmetric and self.activations != "none" and not isinstance(grain, int):
            raise InputError(
                "weight_symmetric=False needs activations='none' or blocks: runtimes multiply symmetric weights"
            )
        if not self.weight_symmetric and self.weight_scale == "learned":
            raise InputError("weight_scale='learned' needs weight_symmetric=True")

    @property
    def needs_data(self) -> bool:
        """Whether quantization without training needs representative data."""
        return self.is_static or self.rounding != "nearest" or self.smooth is not None

    @property
    def is_static(self) -> bool:
        """Whether activations have stored ranges."""
        return self.activations == "static"

    def spec(self, bits: int, is_table: bool) -> WeightSpec:
        """The grid of a weight; tables of static models have one scale, which their rows keep."""
        grain = "tensor" if is_table and self.is_static else self.weight_granularity
        if isinstance(grain, int) and bits > 4:  # no runtime has blocks of 8 bits
            grain = "channel"
        multiplies = self.activations != "none" and not isinstance(grain, int)
        # Lookups and products know no zero point; those of blocks have offsets added.
        return WeightSpec(bits, grain, self.weight_symmetric or is_table or multiplies)


def check_bits(bits: Any, name: str) -> None:
    """Raises InputError unless `bits` is None or 2 to 8."""
    if bits is not None and (isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8):
        raise InputError(f"{name} must be 2 to 8 or None, got {bits!r}")


def _named() -> dict[str, QuantizeConfig]:
    kinds = {
        "dynamic_int8": QuantizeConfig(),
        "dynamic_int4": QuantizeConfig(weight_bits=4, weight_scale="mse"),
        "weight_only_int8": QuantizeConfig(activations="none"),
        "weight_only_int4": QuantizeConfig(weight_bits=4, activations="none", weight_scale="mse"),
        "int8": QuantizeConfig(activations="static"),
        "int16": QuantizeConfig(activations="static", activation_bits=16),
    }
    for block in BLOCKS:
        kinds[f"dynamic_int4_block{block}"] = dataclasses.replace(kinds["dynamic_int4"], weight_granularity=block)
    return kinds


# What `export(quantization=...)`, recipes and the command line call by name.
NAMED: Mapping[str, QuantizeConfig] = _named()
