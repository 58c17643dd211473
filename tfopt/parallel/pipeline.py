"""Pipeline parallelism: stages on devices, which work on parts of a batch at the same time.

Huang et al., "GPipe", https://arxiv.org/abs/1811.06965: every stage computes the micro-batches of a batch one after
the other and hands each on; when all are through, the gradients come back the same way, the last one first.
"""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from tfopt._keras import keras_api
from tfopt._keras.in_call import in_call
from tfopt.errors import InputError
from tfopt.parallel.stages import stages_of
from tfopt.structure.nodes import flat, functional, struct_of
from tfopt.structure.segments import (
    Segment,
    outputs_from,
    plus,
    pulled,
    run_segment,
    segments_of,
    start_values,
)

Gradients = Sequence[tf.Tensor | None]
Values = dict[int, tf.Tensor]


class Pipeline:
    """A transformer over several devices: answers and gradients are those of the model itself.

    Args:
        model: functional, of either generation, with layers that repeat; its weights are used where they are, see
            `tfopt.parallel.stages.placed`.
        devices: names, one for each stage.
        micro_batches: parts of a batch, 1 or more. Few let stages wait for each other; of many, each computes less
            at a time.

    Attributes:
        idle_share: of the devices' time, as the stages' work and the schedule foretell it.

    Raises:
        InputError: more stages than layers, or a number outside its range.
    """

    def __init__(self, model: Any, devices: Sequence[str], *, micro_batches: int) -> None:
        if micro_batches < 1:
            raise InputError(f"micro_batches must be 1 or more, got {micro_batches}")
        stages = stages_of(model, len(devices))
        self.idle_share = stages.idle_share(micro_batches)
        self._graph, self._devices, self._count = stages.graph, list(devices), micro_batches
        self._stages = segments_of(stages.graph, stages.groups)
        self._variables = [keras_api.tf_variable(v) for v in model.trainable_variables]
        self._ends = [id(tensor) for tensor in flat(struct_of(functional(stages.graph), "outputs"))]
        self._infer = tf.function(self._answers, autograph=False)

    def predict(self, x: Any) -> Any:
        """Answers of the model to a batch, as tensors, computed stage by stage."""
        return self._infer(x)

    def _answers(self, x: Any) -> Any:
        sizes, parts, _ = self._forward(x, training=False)
        return self._joined(parts, sizes)

    def __call__(self, x: Any) -> tuple[Any, Any]:
        """Answers to a batch, as in training; for the graph of a `tf.function`.

        Returns:
            The answers, and a function from a gradient for each of their tensors to one for each trainable
            variable of the model, None where they do not depend on it.
        """
        sizes, parts, tapes = self._forward(x, training=True)

        def pull(gradients: Gradients) -> list[tf.Tensor | None]:
            with tf.device(self._devices[-1]):
                split = [_divided(gradient, sizes) for gradient in gradients]
            return self._backward([list(some) for some in zip(*split, strict=True)], tapes)

        return self._joined(parts, sizes), pull

    def _joined(self, parts: Sequence[Values], sizes: Sequence[tf.Tensor]) -> Any:
        with tf.device(self._devices[-1]):
            joined = {
                i: tf.concat([part[i][:size] for part, size in zip(parts, sizes, strict=True)], 0)
                for i in self._ends
            }
        return outputs_from(self._graph, joined)

    def _forward(self, x: Any, training: bool) -> tuple[list[tf.Tensor], list[Values], list[list["_Taped"]]]:
        """Rows of every micro-batch, what it gave, and what each stage keeps of it for the way back."""
        start = start_values(self._graph, x)
        rows = tf.shape(next(iter(start.values())))[0]
        bounds = [rows * i // self._count for i in range(self._count + 1)]
        sizes = [high - low for low, high in itertools.pairwise(bounds)]
        # Of fewer rows than micro-batches some get one that is another's, since layers fail without rows.
        first = [tf.minimum(low, rows - 1) for low in bounds[:-1]]
        cuts = [slice(low, tf.maximum(low + size, low + 1)) for low, size in zip(first, sizes, strict=True)]
        parts = [{i: value[cut] for i, value in start.items()} for cut in cuts]
        turns = [_Turns(device) for device in self._devices]
        tapes: list[list[_Taped]] = [[] for _ in parts]
        # In the order of the schedule: what is ready at once is started in the order in which it was made.
        for tick in range(self._count + len(self._stages) - 1):
            for number, (stage, turn) in enumerate(zip(self._stages, turns, strict=True)):
                if 0 <= tick - number < self._count:
                    part = parts[tick - number]
                    with turn.taken() as results:
                        taped = _Taped(self._graph, stage, part, training=training)
                        results += taped.made
                    tapes[tick - number].append(taped)
                    part.update(zip(stage.gives, taped.made, strict=True))
        return sizes, parts, tapes

    def _backward(self, gradients: list[list[Any]], tapes: list[list["_Taped"]]) -> list[tf.Tensor | None]:
        found = [dict(zip(self._ends, some, strict=True)) for some in gradients]
        turns = [_Turns(device) for device in self._devices]
        sums: list[list[tf.Tensor | None]] = [[None] * len(self._variables) for _ in self._stages]
        last = len(self._stages) - 1
        for tick in range(self._count + last):
            for number in range(len(self._stages)):
                behind = tick - (last - number)
                if not 0 <= behind < self._count:
                    continue
                part = self._count - 1 - behind
                with turns[number].taken() as results:
                    of_inputs, of_variables = tapes[part][number].pulled(found[part], self._variables)
                    sums[number] = [plus(*pair) for pair in zip(sums[number], of_variables, strict=True)]
                    results += [g for g in [*of_inputs, *sums[number]] if g is not None]
                    for i, gradient in zip(self._stages[number].takes, of_inputs, strict=True):
                        found[part][i] = plus(found[part].get(i), gradient)
        total = sums[0]
        for other in sums[1:]:
            total = [plus(*pair) for pair in zip(total, other, strict=True)]
        return total


def _divided(gradient: tf.Tensor | None, sizes: Sequence[tf.Tensor]) -> list[tf.Tensor | None]:
    """A gradient of the rows of each micro-batch, zero for the row of one that has none."""
    if gradient is None:
        return [None] * len(sizes)
    further = [[0, 0]] * (len(gradient.shape) - 1)
    return [
        tf.pad(part, [[0, tf.maximum(1 - size, 0)], *further])
        for part, size in zip(tf.split(gradient, tf.stack(sizes), num=len(sizes)), sizes, strict=True)
    ]


class _Turns:
    """One device, which does one thing after the other."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._before: list[Any] = []

    @contextlib.contextmanager
    def taken(self) -> Iterator[list[Any]]:
        """While entered, operations are of the device and after the turn before; yields a list for results."""
        results: list[Any] = []
        with tf.device(self._device), tf.control_dependencies(self._before):
            yield results
        self._before = [result.op for result in results]


class _Taped:
    """A stage's work on one micro-batch."""

    def __init__(self, graph: Any, stage: Segment, values: Values, *, training: bool) -> None:
        self._stage = stage
        self._taken = [tf.identity(values[i]) for i in stage.takes]
        known = dict(zip(stage.takes, self._taken, strict=True))
        self._tape = tf.GradientTape()
        with self._tape if training else contextlib.nullcontext():
            if training:
                self._tape.watch([t for t in self._taken if t.dtype.is_floating])
            self.made = in_call(graph, lambda: run_segment(stage, known, training=training), training=training)

    def pulled(self, gradients: Values, variables: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Gradients of what the stage took, and of variables, from those of what it gave."""
        wanted = [(t, gradients.get(i)) for i, t in zip(self._stage.gives, self.made, strict=True)]
        found: tuple[list[Any], list[Any]] = pulled(self._tape, wanted, self._taken, variables=variables)
        return found
