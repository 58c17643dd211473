"""Low-rank adapters: a frozen model learns through thin factors beside its matrices.

Hu et al., "LoRA", https://arxiv.org/abs/2106.09685; on weights that lie on a grid as in Dettmers et al., "QLoRA",
https://arxiv.org/abs/2305.14314. `finish` adds each product to its matrix, so nothing of it stays in the model.
"""

import contextlib
import dataclasses
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt._keras import keras_api
from tfopt._keras.keras_api import Weight
from tfopt._keras.layer_calls import Call, Replaced, attribute_of, forget_traces, freeze, original_call, swapped
from tfopt._keras.selection import Patterns, Selection, Skipped
from tfopt.compress.adapters import Adapter
from tfopt.compress.base import Option, Prepared
from tfopt.errors import InputError
from tfopt.quantization.record import detach
from tfopt.quantization.simulation import simulation_of

_log = logging.getLogger(__name__)
_ATTRIBUTE = "_tfopt_adapters"
ADAPTER = "adapter.safetensors"  # of a run's variant, beside the model that it was added to


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which matrices get adapters.

    Attributes:
        rank: of each pair of factors, 1 or more.
        alpha: the product counts alpha / rank times.
        include, exclude: name patterns, layer class names or classes; kernels by default, tables if included.
        whole: likewise: layers that are trained as they are, such as a new classifier.
        seed: of the first values.
    """

    rank: int = 8
    alpha: float = 16.0
    include: Patterns = None
    exclude: Patterns = None
    whole: Patterns = None
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise InputError(f"rank must be 1 or more, got {self.rank!r}")
        if not self.alpha > 0 or not math.isfinite(self.alpha):
            raise InputError(f"alpha must be above 0, got {self.alpha}")


Config = LoraConfig


def prepare(model: Any, config: LoraConfig) -> Prepared:
    """The same model, frozen, with adapters that `fit` trains; compile it after this.

    Statistics of batch norms go on moving, as in any training.

    Args:
        model: a built model of either generation, float or quantized.
        config: see `LoraConfig`.

    Raises:
        InputError: no matrix for adapters, a rank that is no less than that of every matrix, or a model that has
            adapters or is being quantized; the model is then unchanged.
    """
    keras_api.check_finite(keras_api.weights(keras_api.check_model(model)))
    if is_attached(model):
        raise InputError(f"model {model.name!r} has adapters already; call finish(model) first")
    if any(simulation_of(one) is not None for one in (model, *(layer for _, layer in keras_api.walk(model)))):
        raise InputError(f"model {model.name!r} is being quantized; finish that first, then add adapters")
    chosen, skipped = adaptable(model, config)
    for one in skipped:
        _log.info("%s gets no adapter: %s", one.path, one.reason)
    adapters = _Adapters(model, config, chosen)
    object.__setattr__(model, _ATTRIBUTE, adapters)
    return Prepared(model, [], skipped, files=lambda: {ADAPTER: adapter_of(model).to_bytes()})


def finish(model: Any) -> Any:
    """The same model as it was built, its matrices with the products of their adapters added, nothing frozen.

    What was on a grid no longer is: quantize it again, on export or with `quantize_aware`.

    Raises:
        InputError: the model has no adapters, or one became NaN; it then keeps them.
    """
    adapters = getattr(model, _ATTRIBUTE, None)
    if adapters is None:
        raise InputError(f"model {model.name!r} has no adapters; call prepare(model, LoraConfig(...)) first")
    adapters.merge()
    object.__delattr__(model, _ATTRIBUTE)
    detach(model)
    return model


def take(model: Any) -> Adapter:
    """What was trained, and the model as it was before `prepare`: the base of several adapters.

    Statistics of batch norms stay as the training left them.

    Raises:
        InputError: the model has no adapters, or one became NaN; it then keeps them.
    """
    taken = adapter_of(model)
    adapters: _Adapters = getattr(model, _ATTRIBUTE)
    adapters.give_back()
    object.__delattr__(model, _ATTRIBUTE)
    return taken


def adapter_of(model: Any) -> Adapter:
    """What is being trained, as it is now; raises as `take`."""
    adapters = getattr(model, _ATTRIBUTE, None)
    if adapters is None:
        raise InputError(f"model {model.name!r} has no adapters; call prepare(model, LoraConfig(...)) first")
    found: Adapter = adapters.adapter()
    return found


def is_attached(model: Any) -> bool:
    return getattr(model, _ATTRIBUTE, None) is not None


def explain(model: Any) -> dict[str, str]:
    """Path of a matrix -> "takes an adapter", or the reason why it gets none."""
    chosen, skipped = _matrices(model, LoraConfig())
    return {**{w.path: "takes an adapter" for w in chosen}, **{s.path: s.reason for s in skipped}}


def options(model: Any) -> Iterator[Option]:
    """None: adapters make nothing smaller."""
    yield from ()


def adaptable(model: Any, config: LoraConfig) -> tuple[list[Weight], list[Skipped]]:
    """The matrices that get adapters, and the others with the reason why not.

    Raises:
        InputError: there are none.
    """
    chosen, skipped = _matrices(model, config)
    if not chosen:
        telling = [s for s in skipped if s.reason.startswith("rank")] or skipped
        reasons = "; ".join(f"{s.path}: {s.reason}" for s in telling[:3]) or "it has no matrices"
        raise InputError(f"nothing in model {model.name!r} takes adapters ({reasons})")
    fixed = next((weight for weight in chosen if not weight.layer.trainable), None)
    if fixed is not None:
        raise InputError(
            f"layer {fixed.layer_path!r} is not trainable, so its adapter would not learn; set trainable = True, "
            "prepare freezes the weights by itself"
        )
    return chosen, skipped


def _matrices(model: Any, config: LoraConfig) -> tuple[list[Weight], list[Skipped]]:
    selection = Selection(model, config.include, config.exclude)
    whole = Selection(model, config.whole)
    cells = {id(cell) for _, layer in keras_api.walk(model) for cell in _cells(layer)}
    chosen, skipped = [], []
    for weight in selection.weights:
        if len(weight.variable.shape) < 2:
            continue
        reason = selection.reason_to_skip(weight)
        if reason is None and config.whole is not None and whole.included_by_name(weight):
            reason = "trained whole"
        if reason is None and weight.name != "kernel" and not selection.included_by_name(weight):
            reason = f"{type(weight.layer).__name__}.{weight.name} is no kernel; name it in include"
        if reason is None and id(weight.layer) in cells:
            reason = "a recurrent layer reads it behind the back of its cell"
        if reason is None and "Depthwise" in type(weight.layer).__name__:
            reason = "a depthwise kernel is no matrix"
        if reason is None and config.rank >= min(_sides(weight)):
            reason = (
                f"rank {config.rank} is no less than that of a matrix of {' x '.join(map(str, _sides(weight)))}"
            )
        if reason is None:
            chosen.append(weight)
        else:
            skipped.append(Skipped(weight.path, reason))
    return chosen, skipped


def _cells(layer: Any) -> list[Any]:
    """The cells of a recurrent layer."""
    cell = getattr(layer, "cell", None)
    return [] if cell is None else [cell, *(inner for _, inner in keras_api.walk(cell))]


def _sides(weight: Weight) -> tuple[int, int]:
    """A kernel as (inputs, outputs), whatever axes it has: what an EinsumDense sums over comes first."""
    shape = [int(d) for d in weight.variable.shape]
    if type(weight.layer).__name__ == "EinsumDense":
        operands, _, result = weight.layer.equation.replace(" ", "").partition("->")
        summed = sum(letter not in result for letter in operands.split(",")[1])
        return math.prod(shape[:summed]), math.prod(shape[summed:])
    return math.prod(shape[:-1]), shape[-1]


class _Adapters:
    """The factors of a model, and what puts it back."""

    def __init__(self, model: Any, config: LoraConfig, chosen: list[Weight]) -> None:
        self._model, self._scale = model, config.alpha / config.rank
        self._replaced = Replaced()
        self._thaw: list[Callable[[], None]] = []
        self._factors: list[tuple[Weight, Any, Any]] = []
        self._whole: list[tuple[Weight, np.ndarray]] = []  # with the values from before
        whole = Selection(model, config.whole)
        rng = np.random.default_rng(config.seed)
        strategy = getattr(keras_api.tf_variable(chosen[0].variable), "distribute_strategy", None)
        try:
            with strategy.scope() if strategy is not None else contextlib.nullcontext():
                trained = {id(w.layer) for w in whole.weights if config.whole and whole.included_by_name(w)}
                for weight in whole.weights:
                    if id(weight.layer) in trained:
                        self._whole.append((weight, keras_api.to_numpy(weight.variable)))
                for _, layer in [("", model), *keras_api.walk(model)]:
                    if id(layer) not in trained:
                        self._thaw.append(freeze(layer))
                for weight in chosen:
                    self._add(weight, config.rank, rng)
        except BaseException:
            self._remove()
            raise
        forget_traces(model)

    def _add(self, weight: Weight, rank: int, rng: np.random.Generator) -> None:
        inputs, outputs = _sides(weight)
        first = rng.normal(0, inputs**-0.5, (inputs, rank)).astype(np.float32)
        low = keras_api.add_trainable(weight.layer, f"{weight.name}_adapter_low", first)
        up = keras_api.add_trainable(
            weight.layer, f"{weight.name}_adapter_up", np.zeros((rank, outputs), np.float32)
        )
        self._factors.append((weight, low, up))
        self._replaced.put(weight.layer, "call", self._call(weight, low, up))

    def _call(self, weight: Weight, low: Any, up: Any) -> Call:
        layer, original = weight.layer, original_call(weight.layer)
        name = attribute_of(layer, weight.variable)

        def call(*arguments: Any, **keywords: Any) -> Any:
            kernel = tf.convert_to_tensor(keras_api.tf_variable(weight.variable))
            factors = (tf.convert_to_tensor(keras_api.tf_variable(factor)) for factor in (low, up))
            change = tf.cast(tf.reshape(tf.matmul(*factors) * self._scale, kernel.shape), kernel.dtype)
            with swapped(layer, {name: kernel + change}):
                return original(*arguments, **keywords)

        return call

    def adapter(self) -> Adapter:
        """What was learned so far."""
        factors = {w.path: (keras_api.to_numpy(low), keras_api.to_numpy(up)) for w, low, up in self._factors}
        whole = {weight.path: keras_api.to_numpy(weight.variable) for weight, _ in self._whole}
        return Adapter(factors, self._scale, whole)

    def merge(self) -> None:
        factors = self.adapter().factors
        for weight, *_ in self._factors:
            value, (low, up) = keras_api.to_numpy(weight.variable), factors[weight.path]
            weight.variable.assign(value + (self._scale * (low @ up)).reshape(value.shape))
        self._remove()

    def give_back(self) -> None:
        """Leaves the model as it was."""
        for weight, value in self._whole:
            weight.variable.assign(value)
        self._remove()

    def _remove(self) -> None:
        self._replaced.give_back()
        for weight, low, up in self._factors:
            keras_api.remove_trainable(weight.layer, low)
            keras_api.remove_trainable(weight.layer, up)
        for thaw in self._thaw:
            thaw()
        forget_traces(self._model)
