"""Magnitude pruning: the smallest weights become zero and stay zero while the rest trains on.

Zhu and Gupta, "To prune, or not to prune", https://arxiv.org/abs/1710.01878. Masks are computed
between steps, from the weights that the optimizer has just written, and live outside the model: it
stays the plain Keras model it was, with nothing to strip.
"""

import dataclasses
import logging
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from tfopt._keras import keras_api
from tfopt._keras.keras_api import Weight
from tfopt._keras.selection import Patterns, Selection, Skipped
from tfopt.compress.base import Option, Prepared, attach, attached, detach
from tfopt.errors import InputError
from tfopt.numerics.masked_assign import MaskedAssign
from tfopt.numerics.masks import (
    PRUNED_SHARE,
    SparsityPattern,
    check_pattern_sparsity,
    magnitude_masks,
    parse_structure,
    zero_share,
)
from tfopt.schedules import Follower, SparsitySchedule, check_sparsity

_log = logging.getLogger(__name__)

_NAME = "prune"
_SHARES = (0.5, 0.8)  # of zeros, that a search tries
# As in tensorflow-model-optimization: lookup tables and depthwise kernels only when asked for.
KERNEL_NAMES = frozenset({"kernel", "recurrent_kernel", "pointwise_kernel"})


@dataclasses.dataclass(frozen=True)
class PruneConfig:
    """What `prepare` needs to know; see `MagnitudePruning` for the meaning of each field."""

    schedule: SparsitySchedule
    structure: str = "unstructured"
    scope: str = "layer"
    include: Patterns = None
    exclude: Patterns = None


Config = PruneConfig


def prepare(model: Any, config: PruneConfig) -> Prepared:
    """The model unchanged, with the callback that prunes it during `fit`."""
    keras_api.check_model(model)
    _, skipped = prunable(
        model, include=config.include, exclude=config.exclude, structure=parse_structure(config.structure)
    )
    callback = MagnitudePruning(
        config.schedule,
        structure=config.structure,
        scope=config.scope,
        include=config.include,
        exclude=config.exclude,
    )
    return Prepared(model, [callback], skipped)


def finish(model: Any) -> Any:
    """The model as it is: pruning leaves nothing behind but zeros."""
    detach(model, _NAME)
    return model


def is_attached(model: Any) -> bool:
    return _NAME in attached(model)


def at_once(model: Any, config: PruneConfig) -> Any:
    """The model with what the schedule ends at, in place."""
    target = Follower(config.schedule).target
    if target is None:
        raise InputError("pruning at once needs a schedule with a final_sparsity or target_sparsity")
    return prune(
        model,
        target,
        structure=config.structure,
        scope=config.scope,
        include=config.include,
        exclude=config.exclude,
    )


def explain(model: Any) -> dict[str, str]:
    """Path of a matrix -> "prunable", or the reason why it is left alone."""
    kernels, skipped = prunable(model)
    return {**{w.path: "prunable" for w in kernels}, **{s.path: s.reason for s in skipped}}


def options(model: Any) -> Iterator[Option]:
    """Shares of zeros for each kernel."""
    for weight in prunable(model)[0]:
        for share in _SHARES:
            yield Option("zeros", weight.path, share)


def prune(
    model: Any,
    sparsity: float,
    *,
    structure: str = "unstructured",
    scope: str = "layer",
    include: Patterns = None,
    exclude: Patterns = None,
) -> Any:
    """Prunes the model's weights once, in place, and returns the model.

    Args:
        model: a built model of either Keras generation.
        sparsity: share of the weights to remove, in [0, 1); with "n:m" it must be 1 - n/m.
        structure: "unstructured", "n:m" (n kept of every m along the input axis) or "RxC" blocks.
        scope: "layer" ranks each kernel on its own, "global" ranks all of them together.
        include: name patterns, layer class names or classes; only what matches is pruned.
        exclude: likewise; what matches is left alone.

    Returns:
        The same model object.

    Raises:
        InputError: a bad argument or a weight that is not finite; the model is then unchanged.

    >>> import tf_keras, tfopt
    >>> model = tf_keras.Sequential([tf_keras.layers.Input((4,)), tf_keras.layers.Dense(8, name="a")])
    >>> int((tfopt.prune(model, 0.75).get_layer("a").kernel.numpy() == 0).sum())
    24
    """
    keras_api.check_model(model)
    check_sparsity(sparsity)
    check_pattern_sparsity(parse_structure(structure), sparsity)
    pruner = Pruner(model, structure=structure, scope=scope, include=include, exclude=exclude)
    pruner.update(sparsity)
    pruner.apply()
    return model


def prunable(
    model: Any, *, include: Patterns = None, exclude: Patterns = None, structure: SparsityPattern | None = None
) -> tuple[list[Weight], list[Skipped]]:
    """The weights that pruning would touch, and the other matrices with the reason why not."""
    selection = Selection(model, include, exclude)
    chosen, skipped = [], []
    for weight in selection.weights:
        if len(weight.variable.shape) < 2:
            continue
        reason = selection.reason_to_skip(weight)
        if reason is None and weight.name not in KERNEL_NAMES and not selection.included_by_name(weight):
            reason = f"{type(weight.layer).__name__}.{weight.name} is no kernel; name it in include to prune it"
        if reason is None and structure and structure.kind != "unstructured" and matrix_shape(weight) is None:
            reason = "its input and output axes are mixed, so it has no rows for this structure"
        if reason is None:
            chosen.append(weight)
        else:
            skipped.append(Skipped(weight.path, reason))
    return chosen, skipped


def matrix_shape(weight: Weight) -> tuple[int, ...] | None:
    """The shape in which the second to last axis is the input and the last the output axis.

    A convolution kernel keeps its shape; an einsum kernel is flattened to (inputs, outputs). None if
    the axes of an einsum kernel are interleaved.
    """
    shape = tuple(int(d) for d in weight.variable.shape)
    equation = getattr(weight.layer, "equation", None)
    if equation is None:
        return shape
    operands, _, result = equation.replace(" ", "").partition("->")
    labels = operands.split(",")[1]
    is_output = [label in result for label in labels]
    if is_output != sorted(is_output):
        return None
    inputs = is_output.count(False)
    return math.prod(shape[:inputs]), math.prod(shape[inputs:])


class Pruner:
    """Masks for the kernels of one model: `update` computes them, `apply` writes the zeros.

    Args:
        model: a built model.
        structure, scope, include, exclude: as for `prune`.
    """

    def __init__(
        self, model: Any, *, structure: str, scope: str, include: Patterns = None, exclude: Patterns = None
    ) -> None:
        self.model = model
        self._structure = parse_structure(structure)
        _check_scope(scope, self._structure)
        self._across = scope == "global"
        self.weights, self.skipped = prunable(model, include=include, exclude=exclude, structure=self._structure)
        if not self.weights:
            reasons = "; ".join(f"{s.path}: {s.reason}" for s in self.skipped[:3]) or "it has no matrices"
            raise InputError(f"nothing to prune in model {model.name!r} ({reasons})")
        self._assign = MaskedAssign([keras_api.tf_variable(w.variable) for w in self.weights])

    def update(self, sparsity: float) -> None:
        """Computes new masks from the weights as they are now.

        Raises:
            InputError: a weight holds NaN or infinity (the tensor is named).
        """
        arrays = [self._as_matrix(w) for w in self.weights]
        masks = magnitude_masks(arrays, sparsity, self._structure, across=self._across)
        shapes = [tuple(w.variable.shape) for w in self.weights]
        self._assign.set_masks([m.reshape(s) for m, s in zip(masks, shapes, strict=True)])

    def adopt_zeros(self) -> None:
        """Takes the zeros that the weights hold as the masks."""
        self._assign.set_masks([keras_api.to_numpy(w.variable) != 0 for w in self.weights])

    def apply(self) -> None:
        """Writes zeros where the masks say so, on every replica."""
        self._assign()

    def sparsity(self) -> float:
        """Share of zeros over all pruned kernels together."""
        return zero_share([keras_api.to_numpy(w.variable) for w in self.weights]) or 0.0

    def _as_matrix(self, weight: Weight) -> np.ndarray:
        array = keras_api.to_numpy(weight.variable)
        if array.dtype not in (np.float32, np.float64):
            array = array.astype(np.float32)
        if not np.isfinite(array.max() - array.min()):
            raise InputError(f"weight {weight.path!r} holds NaN or infinity; it cannot be ranked for pruning")
        if self._structure.kind == "unstructured":
            return array
        return array.reshape(matrix_shape(weight))


class MagnitudePruning(keras_api.Callback):
    """Keras callback that prunes a model while it trains, in either Keras generation.

    Masks are recomputed right before the schedule's steps, which count from 1 as in
    tensorflow-model-optimization, and applied after every optimizer step (after every execution where
    `steps_per_execution` is above 1). Unlike there, a `begin_step` of 0 means before the first step. Steps
    count from the first `fit` that this callback sees, whatever the optimizer has counted before, and go on when
    the callback is passed to the next `fit` of the same model. The log warns of a schedule that asks for nothing
    in a `fit`, and of one whose sparsity is not reached by its end. The reached sparsity appears in `logs` as
    "sparsity" at the end of each epoch. Put the callback before those that save the model.

    Args:
        schedule: `schedules.PolynomialDecay`, `schedules.ConstantSparsity`, an object of
            tensorflow-model-optimization, or any callable from step to (update now, sparsity).
        structure: "unstructured", "n:m" or "RxC"; see `prune`. An n:m pattern has no degrees: from the first
            update on it is there in full, and the schedule's final sparsity must be its own.
        scope: "layer" or "global".
        include: name patterns, layer class names or classes; only what matches is pruned.
        exclude: likewise; what matches is left alone.
        resume: count the optimizer's earlier steps as well, to go on with a training whose model and optimizer were
            loaded from a file.

    Raises:
        InputError: a bad argument; while training, a pruned weight that is not finite.
    """

    def __init__(
        self,
        schedule: SparsitySchedule,
        *,
        structure: str = "unstructured",
        scope: str = "layer",
        include: Patterns = None,
        exclude: Patterns = None,
        resume: bool = False,
    ) -> None:
        if not callable(schedule):
            raise InputError(f"schedule must be a sparsity schedule, got {schedule!r}")
        parsed = parse_structure(structure)
        _check_scope(scope, parsed)
        self._schedule, self._resume = schedule, resume
        self._target = Follower(schedule).target
        if self._target is not None:
            check_pattern_sparsity(parsed, self._target)
        self._settings: dict[str, Any] = {
            "structure": structure, "scope": scope, "include": include, "exclude": exclude,
        }  # fmt: skip
        self._supports_tf_logs = True  # tf_keras then does not wait for the loss at every step
        self._owner: Any = None
        self._pruner: Pruner | None = None
        self._follower = Follower(schedule, resume)

    def go_on(self) -> None:
        """The training that begins goes on with one that was cut off: as `resume` says."""
        self._resume, self._owner = True, None

    def on_train_begin(self, logs: Any = None) -> None:
        if self._owner is not self.model:
            self._owner, self._pruner, self._follower = self.model, None, Follower(self._schedule, self._resume)
        attach(self.model, _NAME, self)
        self._follower.begin(keras_api.learning_step(self.model))
        if self.model.built:
            self._catch_up()
        idle = self._follower.why_idle(self._steps())
        if idle is not None:
            _log.warning("the schedule prunes nothing in this training: %s", idle)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._catch_up()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self._pruner is not None and isinstance(logs, dict):
            logs["sparsity"] = self._pruner.sparsity()

    def tell(self) -> dict[str, float]:
        """Share of zeros by weight, for `callbacks.Journal`."""
        weights = [] if self._pruner is None else self._pruner.weights
        return {f"sparsity/{w.path}": zero_share([keras_api.to_numpy(w.variable)]) or 0.0 for w in weights}

    def on_train_end(self, logs: Any = None) -> None:
        if self._pruner is None:
            return
        self._pruner.apply()  # another callback may have restored earlier weights
        found = self._pruner.sparsity()
        reached = found if self._follower.reached is None else self._follower.reached
        if self._target is not None and reached < self._target - PRUNED_SHARE:
            end = getattr(self._schedule, "end_step", -1)
            when = f", which is reached at its end_step {end}" if end != -1 else ""
            _log.warning(
                "training ended at step %d with a sparsity of %.4f, below the schedule's %.4f%s",
                self._follower.done, found, self._target, when,
            )  # fmt: skip

    def _steps(self) -> int | None:
        """Optimizer steps of this `fit`, where Keras knows them."""
        epochs, steps = self.params.get("epochs"), self.params.get("steps")
        return epochs * steps if epochs and steps else None

    def _catch_up(self) -> None:
        """Does what the schedule asks for up to the coming step, at most once for all steps since the last call."""
        if self._pruner is None:
            self._pruner = Pruner(self.model, **self._settings)
            # Zeros of a model that was trained before stay until the schedule asks for others.
            if keras_api.learning_step(self.model) and self._pruner.sparsity() > PRUNED_SHARE:
                self._pruner.adopt_zeros()
        sparsity = self._follower.due(keras_api.learning_step(self.model))
        if sparsity is not None:
            self._pruner.update(sparsity)
        self._pruner.apply()


def _check_scope(scope: str, structure: SparsityPattern) -> None:
    if scope not in ("layer", "global"):
        raise InputError(f"scope must be 'layer' or 'global', got {scope!r}")
    if scope == "global" and structure.kind == "n:m":
        raise InputError("scope 'global' cannot be combined with an n:m structure, which ranks within groups")
