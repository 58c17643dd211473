"""Puts rounding into the layers of a model and takes it out again; the model object stays the same.

Only `call` of each layer instance is replaced, so that functional, sequential, nested and subclassed models of
either generation go one way. What is observed lives outside the model: saved in the middle of a training, it
is the plain float model, unless step sizes or ranges are trained, which are variables of its layers meanwhile.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from tfopt._keras import keras_api
from tfopt._keras.layer_calls import Replaced, forget_traces
from tfopt.errors import InputError
from tfopt.numerics.fake_quant import (
    best_clip,
    fake_quant_learned,
    fake_quant_range,
    fake_quant_rows,
    fake_quant_weight,
    scale_and_zero,
)
from tfopt.numerics.masks import PRUNED_SHARE
from tfopt.quantization.config import QuantizeConfig
from tfopt.quantization.kinds import role
from tfopt.quantization.plan import PlannedWeight, QuantizationPlan, plan_weights
from tfopt.quantization.points import FIXED, ActivationPoint, Kind, usable, usable_tensors
from tfopt.quantization.recurrent import refuse_loops

_ATTRIBUTE = "_tfopt_simulation"
Mode = Literal["train", "calibrate", "frozen"]


def simulation_of(model: Any) -> "Simulation | None":
    """The simulation that is in the model, or None."""
    return getattr(model, _ATTRIBUTE, None)


class Simulation:
    """Rounding in the layers of one model.

    Args:
        model: a built model.
        config: what is simulated.
        plan: its weights.
        ranges: for mode "frozen", lowest and highest value by point.
        mode: "train" observes and rounds, "calibrate" only observes, "frozen" is for conversion: it rounds
            activations to `ranges` and leaves weights as they are.
    """

    def __init__(
        self,
        model: Any,
        config: QuantizeConfig,
        plan: QuantizationPlan,
        mode: Mode = "train",
        ranges: dict[str, tuple[float, float]] | None = None,
    ) -> None:
        if config.is_static:
            refuse_loops(model)
        self.model, self.config, self.plan, self.mode = model, config, plan, mode
        self.ranges = ranges or {}
        self.points: dict[str, ActivationPoint] = {}
        self.steps: dict[str, tuple[tf.Tensor, Any]] = {}  # first step size and trained gain, by weight
        self._wide: set[str] = set()
        self._clips: dict[str, tf.Tensor] = {}
        self._masks: dict[str, tf.Tensor] = {}
        self._replaced = Replaced()
        self._in_train_step = False
        self.watch: Callable[[Any, tf.Tensor], None] | None = None  # sees the inputs of products
        self.counter: Any = None

    @property
    def state(self) -> list[Any]:
        """Variables that are no weights: what was counted and observed."""
        return [v for v in (self.counter, *(point.seen for point in self.points.values())) if v is not None]

    # putting in and taking out

    def install(self) -> "Simulation":
        """Replaces the calls of the model's layers, or leaves all of them as they are."""
        for owner in (self.model, *(layer for _, layer in keras_api.walk(self.model))):
            if simulation_of(owner) is not None:
                raise InputError(f"model {owner.name!r} is already being quantized; call finish(model) first")
        variables = keras_api.weights(self.model)
        strategy = getattr(keras_api.tf_variable(variables[0].variable), "distribute_strategy", None)
        try:
            with strategy.scope() if strategy is not None else contextlib.nullcontext():
                self._put_in()
        except BaseException:
            self.remove()
            raise
        object.__setattr__(self.model, _ATTRIBUTE, self)
        forget_traces(self.model)
        return self

    def _put_in(self) -> None:
        from tfopt.quantization.calls import new_calls

        if self.mode == "train":
            self.counter = tf.Variable(
                0, trainable=False, dtype=tf.int64, synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA, name="quantization_step",
            )  # fmt: skip
            for planned in self.plan.weights:
                self._prepare_weight(planned)
        for owner, name, call in new_calls(self):
            self._replaced.put(owner, name, call)
        if self.mode == "train":
            self._replaced.put(self.model, "train_step", self._train_step(self.model.train_step))

    def remove(self) -> None:
        """Gives every layer its own call back."""
        self._replaced.give_back()
        for planned in self.plan.weights:
            if planned.path in self.steps:
                keras_api.remove_trainable(planned.weight.layer, self.steps[planned.path][1])
        for point in self.points.values():
            if point.gain is not None:
                keras_api.remove_trainable(point.layer, point.gain)
        if simulation_of(self.model) is self:
            object.__delattr__(self.model, _ATTRIBUTE)
        forget_traces(self.model)

    def _train_step(self, original: Any) -> Any:
        def train_step(*args: Any, **kwargs: Any) -> Any:
            self._in_train_step = True  # the only sign of training for models whose call has no such argument
            try:
                return original(*args, **kwargs)
            finally:
                self._in_train_step = False

        return train_step

    def _prepare_weight(self, planned: PlannedWeight) -> None:
        value = keras_api.to_numpy(planned.weight.variable).astype(np.float32)
        is_kernel = role(planned.weight.layer) in ("product", "cell")
        if self.config.preserve_sparsity and is_kernel and PRUNED_SHARE < (value == 0).mean() < 1:
            self._masks[planned.path] = tf.constant(value != 0)
        if self.config.weight_scale == "max":
            return
        clip = best_clip(tf.constant(value), planned.layout, planned.spec)
        if self.config.weight_scale == "mse":
            self._clips[planned.path] = tf.constant(clip)
        else:
            scale, _ = scale_and_zero(tf.constant(value), planned.layout, planned.spec, clip=clip)
            # Trained as a power of e, since Adam's steps have the size of its rate, not of the gradient.
            gain = np.zeros(scale.shape, np.float32)
            variable = keras_api.add_trainable(planned.weight.layer, f"{planned.weight.name}_step_gain", gain)
            self.steps[planned.path] = (scale, variable)

    # points

    def add_point(self, layer: Any, path: str, name: str, learns: bool = True, wide: bool = False) -> str:
        """Makes a place at which an activation gets a fixed range, of 16 bits if it is wide; returns its key."""
        key = f"{path}:{name}"
        if wide:
            self._wide.add(key)
        if self.mode != "frozen" and key not in self.points:
            owner = layer if hasattr(layer, "add_weight") else self.model
            learned = learns and not wide and self.config.activation_range == "learned" and self.mode == "train"
            self.points[key] = ActivationPoint(
                owner, key, learned, widest=wide or self.config.activation_bits == 16
            )
        return key

    # rounding, while a call is under way

    def training(self, layer: Any) -> bool:
        """Whether the call that is under way trains."""
        flag = keras_api.training_flag(layer)
        return self._in_train_step if flag is None else bool(flag) if not tf.is_tensor(flag) else False

    def count_step(self, layer: Any) -> None:
        """Counts a training step, inside the graph."""
        if self.counter is not None and self.training(layer):
            self.counter.assign_add(1)

    def _after_warmup(self, x: tf.Tensor, rounded: Any) -> tf.Tensor:
        if self.mode != "train" or not self.config.warmup_steps:
            return rounded()
        ready = tf.convert_to_tensor(self.counter) > self.config.warmup_steps
        return tf.cond(ready, rounded, lambda: tf.identity(x))

    def weight(self, planned: PlannedWeight, value: tf.Tensor) -> tf.Tensor:
        """The weight, or rows of a lookup table, on its grid."""
        if self.mode != "train":
            return value
        latent = tf.cast(value, tf.float32)
        mask = self._masks.get(planned.path)
        if mask is not None:
            latent = tf.where(mask, latent, tf.zeros_like(latent))

        def rounded() -> tf.Tensor:
            if planned.path in self.steps:
                step = self.step_size(planned)
                result = fake_quant_learned(latent, step, planned.layout, spec=planned.spec)
            else:
                clip = self._clips.get(planned.path, 1.0)
                result = fake_quant_weight(latent, planned.layout, planned.spec, clip=clip)
            return tf.cast(result, value.dtype)

        return self._after_warmup(tf.cast(latent, value.dtype), rounded)

    def step_size(self, planned: PlannedWeight) -> tf.Tensor:
        """The trained step sizes of a weight."""
        first, gain = self.steps[planned.path]
        return first * tf.exp(tf.cast(keras_api.tf_variable(gain), tf.float32))

    def latent(self, planned: PlannedWeight) -> tuple[tf.Tensor, Any]:
        """The trained weight before rounding, pruned zeros kept, and the clip ratio of its groups."""
        w = tf.constant(keras_api.to_numpy(planned.weight.variable), tf.float32)
        mask = self._masks.get(planned.path)
        return (w if mask is None else tf.where(mask, w, tf.zeros_like(w))), self._clips.get(planned.path, 1.0)

    def rounds_by_row(self, planned: PlannedWeight) -> bool:
        """Whether rows of a table can be rounded after the lookup, without touching the rest of the table."""
        own_scales = planned.path in self.steps or planned.path in self._clips or planned.path in self._masks
        return planned.spec.granularity != "tensor" and not own_scales

    def rows(self, layer: Any, x: tf.Tensor, axes: tuple[int, ...], symmetric: bool = False) -> tf.Tensor:
        """Inputs of a product, rounded row by row where the runtime does so."""
        if self.watch is not None:
            self.watch(layer, x)
        if self.mode == "frozen" and not self.config.is_static:
            # Only a barrier in a graph that is to be converted: a converter would multiply the gamma of a layer
            # norm into the weights behind it, which then lie on no grid.
            return tf.quantization.fake_quant_with_min_max_args(x) if _depends_on_inputs(x) else x
        if self.mode != "train" or self.config.activations != "dynamic":
            return x
        symmetric = symmetric or self.config.activation_symmetric
        return self._after_warmup(x, lambda: fake_quant_rows(x, axes, 8, symmetric=symmetric))

    def keep_apart(self, x: tf.Tensor) -> tf.Tensor:
        """A product's output, in a graph to be converted, so that nothing is folded into its weights from behind.

        Scales of blocks are stored in 16 bits, which a factor folded into them would need more of.
        """
        return tf.quantization.fake_quant_with_min_max_args(x) if self.mode == "frozen" else x

    def mark(self, x: Any, key: str, layer: Any, kind: Kind = "range") -> Any:
        """An activation, observed and rounded to the fixed range of its point."""
        if not tf.is_tensor(x) or not x.dtype.is_floating or not self.config.is_static:
            return x
        bits, symmetric = self.config.activation_bits or 8, self.config.activation_symmetric
        if key in self._wide:
            bits, symmetric = 16, True
        fixed = FIXED.get((kind, bits))
        if self.mode == "frozen":
            known = fixed or self.ranges.get(key)
            if known is None:
                return x
            low, high = usable(*known, symmetric)
            return fake_quant_range(x, tf.constant(low), tf.constant(high), bits=bits, symmetric=symmetric)
        point = self.points.get(key)
        if point is None:
            return x
        if fixed is None:
            self._observe(point, x, layer, kind=kind)
        # What 16 bits take from a value is nothing that training could feel, and rounding costs two passes.
        if self.mode == "calibrate" or (key in self._wide and self.config.activation_bits == 8):
            return x

        seen = point.now()

        def rounded() -> tf.Tensor:
            low, high = (tf.convert_to_tensor(bound) for bound in fixed or point.range(seen))
            low, high = usable_tensors(low, high, symmetric)
            if fixed:
                return fake_quant_range(x, low, high, bits=bits, symmetric=symmetric)
            observed = seen[2] > 0  # nothing was before training
            return tf.cond(
                observed, lambda: fake_quant_range(x, low, high, bits=bits, symmetric=symmetric), lambda: x
            )

        return self._after_warmup(x, rounded)

    def _observe(self, point: ActivationPoint, x: tf.Tensor, layer: Any, kind: Kind) -> None:
        if self.mode == "calibrate":
            point.observe(x, kind, self.config.momentum, active=True)
        elif self.training(layer):
            active: tf.Tensor | bool = True
            if self.config.freeze_after is not None:
                active = tf.convert_to_tensor(self.counter) <= self.config.freeze_after
            point.observe(x, kind, self.config.momentum, active=active)

    def observed(self) -> dict[str, tuple[float, float]]:
        """Ranges of the points that saw something."""
        values = {key: point.value() for key, point in self.points.items()}
        return {key: (low, high) for key, (low, high, count) in values.items() if count}


def _depends_on_inputs(x: tf.Tensor) -> bool:
    """Whether a tensor of a traced function is computed from its inputs; constants would be folded, and rounded."""
    captured = {id(tensor) for tensor in x.graph.internal_captures}
    seen, waiting = set(), [x]
    while waiting:
        tensor = waiting.pop()
        if id(tensor.op) in seen:
            continue
        seen.add(id(tensor.op))
        if tensor.op.type == "Placeholder" and id(tensor) not in captured:
            return True
        waiting.extend(tensor.op.inputs)
    return False


@contextlib.contextmanager
def watched_inputs(model: Any, watch: Callable[[Any, tf.Tensor], None]) -> Iterator[None]:
    """While entered, `watch` is called with every layer that has a kernel and what it is fed."""
    config = QuantizeConfig(weight_bits=8, activations="none")
    simulation = Simulation(model, config, plan_weights(model, config), mode="calibrate")
    simulation.watch = watch
    simulation.install()
    try:
        yield
    finally:
        simulation.remove()
