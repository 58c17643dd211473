"""One optimizer step: the gradient of a whole batch, in parts and over all replicas, clipped and applied once.

Keras 3 clips what each replica has before it sums, so that its steps on two replicas are not those on one, and its
`fit` does not work on several workers (https://github.com/keras-team/keras/issues/20585). Here the gradients of all
parts are summed first, each counting by its rows, so that the step does not depend on how a batch is divided.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfopt._keras import keras_api, training
from tfopt.schedules import Clipping
from tfopt.train.clipping import clipped
from tfopt.train.loss_scale import LossScale
from tfopt.train.objectives import Objective, Plain
from tfopt.train.parts import Part, part_of_replica

# Inputs -> the answers of a model that trains, and what takes a gradient for each of their tensors to one for each
# trainable variable, None where there is none.
Network = Callable[[Any], tuple[Any, Callable[[Sequence[Any]], Sequence[Any]]]]


class Taken(NamedTuple):
    """What a step tells.

    Attributes:
        loss: of this batch, before the step, scalar.
        norms: of the gradient of each variable, before clipping, of shape (variables,).
        ends: how many workers want the training to end, and how many were told to by a signal, of shape (2,).
        logs: the metrics of the pass so far.
        skipped: whether the step was left out, since a scaled gradient overflowed.
    """

    loss: tf.Tensor
    norms: tf.Tensor
    ends: tf.Tensor
    logs: dict[str, tf.Tensor]
    skipped: bool = False


class TrainStep:
    """Trains a compiled model on one batch.

    Args:
        model: of either generation; all that it is compiled with is used but for clipping and distribution.
        strategy: in whose scope it was made, or None.
        part_rows: most rows that are computed at once on one replica; None for all that it gets.
        clipping: how the gradient is bounded, and by what; a bound of 0 for not at all.
        jit_compile: whether XLA compiles the computation of gradients.
        scale: of the loss, for models that compute in float16, or None. A step whose gradients overflow is
            left out.
        rates: of each trainable variable, as a share of the learning rate; None for 1.
        network: how the model is computed where it is not called as a whole.
        objective: the loss of a batch; None for the one that the model is compiled with.
    """

    def __init__(
        self,
        model: Any,
        *,
        strategy: Any,
        part_rows: int | None,
        clipping: tuple[Clipping, float],
        jit_compile: bool,
        scale: LossScale | None = None,
        rates: Sequence[float] | None = None,
        network: Network | None = None,
        objective: Objective | None = None,
    ) -> None:
        self._network, self._objective = network, objective or Plain(model)
        self._model, self._strategy, self._clipping = model, strategy, clipping
        self._replicas = 1 if strategy is None else strategy.num_replicas_in_sync
        self._part_rows, self._scale = part_rows, scale
        self._statistics = training.statistics(model) if strategy is not None else []
        self.variables = list(model.trainable_variables)
        self._rates = [1.0] * len(self.variables) if rates is None else list(rates)
        self.learned: list[int] = []  # numbers of those that the loss depends on, known once it is traced
        self._gradients = tf.function(self._gradients_of, jit_compile=True) if jit_compile else self._gradients_of
        if strategy is not None:
            training.expect_summed_gradients(model.optimizer)
        self._step: Any = None
        self._late = tf.function(self._take, autograph=False)

    def expect(self, spec: Any) -> None:
        """Prepares for what a dataset of parts gives."""
        if self._step is None or self._step.input_signature[0] != spec:
            self._step = tf.function(self._step_of, autograph=False, input_signature=[spec, tf.TensorSpec([2])])

    def __call__(self, parts: tuple[Part, ...], *, ends: tuple[bool, bool] = (False, False)) -> Taken:
        """Takes a step on a batch; `ends` is as in `Taken`, of this process."""
        taken: Taken
        taken, gradients = self._step(parts, tf.constant(ends, tf.float32))
        if self._scale is None:
            return taken
        finite = bool(np.isfinite(taken.norms).all())
        # A loss that is not finite is no matter of the scale.
        if np.isfinite(taken.loss) and not self._scale.passed(finite):
            self._model.optimizer.iterations.assign_add(1)  # schedules count it
            return taken._replace(norms=tf.zeros_like(taken.norms), skipped=True)
        if finite:
            self._late(gradients)
        return taken

    @property
    def inputs(self) -> list[Any]:
        """The symbolic inputs of the model, where it has any."""
        return list(getattr(self._model, "inputs", None) or [])

    def one_part(self, *batch: Any) -> Any:
        """Loss and gradients of rows that are computed at once, on each replica; for a graph that is looked at."""
        return self._run(functools.partial(self._gradients_of, counts=False), batch, 1.0)

    def _step_of(self, parts: tuple[Part, ...], ends: tf.Tensor) -> tuple[Taken, list[Any]]:
        shares = self._run(self._first, parts, 0) if self._part_rows is None else self._in_turn(parts)
        found, gradients = self._run(self._summed, ends, *shares)
        if self._scale is None:
            self._take(gradients)
            gradients = []
        if self._strategy is not None:
            found = [self._strategy.experimental_local_results(value)[0] for value in found]
        loss, norms, ends = found
        return Taken(loss, norms, ends=ends, logs=training.metric_results(self._model)), gradients

    def _run(self, function: Any, *args: Any) -> Any:
        return function(*args) if self._strategy is None else self._strategy.run(function, args=args)

    def _in_turn(self, parts: tuple[Part, ...]) -> list[Any]:
        """Loss and gradients of all that a replica has, of one part after the other."""
        # The loop is around the replicas: what all share, as random seeds, does not change in a loop of one.
        rows = -(-parts[0].rows // self._replicas)

        def add_one(start: tf.Tensor, sums: list[Any]) -> tuple[tf.Tensor, list[Any]]:
            return start + self._part_rows, self._run(self._next, parts, start, sums)

        sums = self._run(self._first, parts, 0)
        _, sums = tf.while_loop(
            lambda start, _: start < rows, add_one, (tf.constant(self._part_rows), sums), parallel_iterations=1
        )
        return sums

    def _next(self, parts: tuple[Part, ...], start: Any, sums: list[tf.Tensor]) -> list[tf.Tensor]:
        return [total + value for total, value in zip(sums, self._first(parts, start), strict=True)]

    def _first(self, parts: tuple[Part, ...], start: Any) -> list[tf.Tensor]:
        """The share of the batch's loss and gradients that the rows from `start` on have."""
        part = part_of_replica(parts)
        batch, rows = part.batch, part.own
        if self._part_rows is not None:
            end, first = tf.minimum(start + self._part_rows, rows), tf.maximum(tf.minimum(start, rows - 1), 0)
            batch = tf.nest.map_structure(lambda value: value[first : tf.maximum(end, first + 1)], batch)
            rows = tf.maximum(end - start, 0)
        elif self._strategy is None:
            return self._gradients(batch, 1.0)
        return self._gradients(batch, tf.cast(rows, tf.float32) / tf.cast(part.rows, tf.float32))

    def _summed(
        self, ends: tf.Tensor, loss: tf.Tensor, *gradients: tf.Tensor
    ) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Sums over replicas: what is told of the step, and the gradients as they are applied."""
        summed = list(gradients)
        if self._strategy is not None:
            context = tf.distribute.get_replica_context()
            ends = tf.identity(ends)  # what a function is given has no device, and a sum needs one
            ends, loss, *summed = context.all_reduce(tf.distribute.ReduceOp.SUM, [ends, loss, *summed])
            if self._statistics:
                means = context.all_reduce(tf.distribute.ReduceOp.MEAN, [tf.identity(v) for v in self._statistics])
                for variable, mean in zip(self._statistics, means, strict=True):
                    variable.assign(mean)
        if self._scale is not None:
            summed = [gradient / tf.cast(self._scale.value, gradient.dtype) for gradient in summed]
        summed, norms = clipped(summed, *self._clipping)
        return [loss, norms, ends], summed

    def _take(self, gradients: Sequence[Any]) -> None:
        """Takes the step, on all replicas; slower variables go a part of it."""
        slower = [(keras_api.tf_variable(self.variables[i]), self._rates[i]) for i in self.learned]
        slower = [(variable, rate) for variable, rate in slower if rate != 1.0]
        before = [tf.identity(variable) for variable, _ in slower]
        self._run(self._apply, *gradients)
        for (variable, rate), old in zip(slower, before, strict=True):
            variable.assign(old + rate * (variable - old))

    def _apply(self, *gradients: tf.Tensor) -> None:
        variables = [self.variables[i] for i in self.learned]
        training.apply_summed(self._model.optimizer, list(zip(gradients, variables, strict=True)))

    def _gradients_of(self, batch: tuple[Any, ...], share: Any, *, counts: bool = True) -> list[tf.Tensor]:
        x, y, weight = unpacked(batch)
        answer, pull = None, None
        if self._network is not None:
            answer, pull = self._network(x)
        ends = [] if pull is None else tf.nest.flatten(answer)
        with tf.GradientTape() as tape:
            tape.watch(ends)
            if pull is None:
                loss, answer = self._objective(x, y, weight)
            else:
                loss = training.loss(self._model, x, y, answer=answer, weight=weight, training=True)
            loss *= self._replicas  # Keras divides by their number, since it expects losses to be summed
            shared = tf.cast(loss, tf.float32) * share
            scaled = shared if self._scale is None else shared * self._scale.value
        if counts:
            training.count(self._model, loss, batch=(x, y, weight), answer=answer)
        found = tape.gradient(scaled, [*ends, *(keras_api.tf_variable(v) for v in self.variables)])
        gradients = found[len(ends) :]  # with a network those of losses of weights alone
        if pull is not None:
            gradients = [training.plus(*pair) for pair in zip(gradients, pull(found[: len(ends)]), strict=True)]
        self.learned = [i for i, gradient in enumerate(gradients) if gradient is not None]
        # Dense, since norms of a sparse one would count every mention of a row for itself.
        return [shared, *(tf.convert_to_tensor(gradients[i]) for i in self.learned)]


class EvaluationStep:
    """Counts one batch in the losses and metrics of a compiled model."""

    def __init__(self, model: Any, *, strategy: Any) -> None:
        self._model, self._strategy = model, strategy
        self._replicas = 1 if strategy is None else strategy.num_replicas_in_sync
        self._step: Any = None

    def expect(self, spec: Any) -> None:
        """Prepares for what a dataset of parts gives."""
        self._step = tf.function(self._step_of, autograph=False, input_signature=[spec])

    def __call__(self, parts: tuple[Part, ...]) -> dict[str, tf.Tensor]:
        logs: dict[str, tf.Tensor] = self._step(parts)
        return logs

    def _step_of(self, parts: tuple[Part, ...]) -> dict[str, tf.Tensor]:
        if self._strategy is None:
            self._of_part(parts[0].batch)
        else:
            self._strategy.run(self._replica, args=(parts,))
        return training.metric_results(self._model)

    def _replica(self, parts: tuple[Part, ...]) -> None:
        part = part_of_replica(parts)
        tf.cond(part.own > 0, lambda: self._of_part(part.batch), lambda: tf.constant(False))

    def _of_part(self, batch: tuple[Any, ...]) -> tf.Tensor:
        x, y, weight = unpacked(batch)
        answer = self._model(x, training=False)
        loss = training.loss(self._model, x, y, answer=answer, weight=weight, training=False) * self._replicas
        training.count(self._model, loss, batch=(x, y, weight), answer=answer)
        return tf.constant(True)


def unpacked(batch: tuple[Any, ...]) -> tuple[Any, Any, Any]:
    """Inputs, labels and weights of rows, of which the last may be missing."""
    x, y, weight = (*batch, None, None)[:3]
    return x, y, weight
