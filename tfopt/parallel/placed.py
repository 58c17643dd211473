"""Runs stretches of a graph on devices of their own, on several parts of a batch, forwards and backwards."""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from tfopt._keras import keras_api
from tfopt._keras.in_call import in_call
from tfopt._keras.training import plus
from tfopt.errors import InputError
from tfopt.structure.nodes import Node, flat, functional, struct_of
from tfopt.structure.segments import check_has_no_losses, outputs_from, segments_of, start_values
from tfopt.structure.taped import Gradients, Taped, mask_of

Values = dict[int, tf.Tensor]


class Placed:
    """A functional model over several devices: answers and gradients are those of the model itself.

    Args:
        model: whose trainable variables are meant, and what `graph` calls.
        graph: functional model with every call spelled out.
        groups: calls that run together; every call is in one.
        places: for each group, which device of a lane it runs on.
        lanes: names of devices; each lane computes parts of a batch of its own.
        micro_batches: parts that a lane computes, one after the other where they meet on a device.
        enter: what a technique does to the model's inputs (`compress.base.Prepared`), or None.
    """

    def __init__(
        self,
        model: Any,
        graph: Any,
        *,
        groups: Sequence[Iterable[Node]],
        places: Sequence[int],
        lanes: Sequence[Sequence[str]],
        micro_batches: int,
        enter: Callable[[Any], Any] | None = None,
    ) -> None:
        self._graph, self._enter = graph, enter
        self._segments = segments_of(graph, groups)
        place_of = {node.outputs: place for group, place in zip(groups, places, strict=True) for node in group}
        self._places = [place_of[segment.nodes[0].outputs] for segment in self._segments]
        # Part by part from lane to lane, so that all begin at once.
        self._lanes = [lane for _ in range(micro_batches) for lane in lanes]
        self._starts = [number // len(lanes) for number in range(len(self._lanes))]
        self._variables = [keras_api.tf_variable(v) for v in model.trainable_variables]
        self._ends = [id(tensor) for tensor in flat(struct_of(functional(graph), "outputs"))]
        self._last = lanes[0][self._places[-1]]
        self._infer = tf.function(self._answers, autograph=False)

    def predict(self, x: Any) -> Any:
        """Answers of the model to a batch, as tensors."""
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
            with tf.device(self._last):
                split = [_divided(gradient, sizes) for gradient in gradients]
            return self._backward([list(some) for some in zip(*split, strict=True)], tapes)

        return self._joined(parts, sizes), pull

    def _joined(self, parts: Sequence[Values], sizes: Sequence[tf.Tensor]) -> Any:
        with tf.device(self._last):
            joined = {
                i: tf.concat([part[i][:size] for part, size in zip(parts, sizes, strict=True)], 0)
                for i in self._ends
            }
        return outputs_from(self._graph, joined)

    def _schedule(self) -> Iterator[tuple[int, int]]:
        """Pairs of a part and a segment, in the order in which they can be computed (GPipe's)."""
        for tick in range(self._starts[-1] + len(self._segments)):
            for number, part in itertools.product(range(len(self._segments)), range(len(self._lanes))):
                if self._starts[part] + number == tick:
                    yield part, number

    def _forward(self, x: Any, training: bool) -> tuple[list[tf.Tensor], list[Values], list[list[Taped]]]:
        """Rows of every part, what it gave, and what each segment keeps of it for the way back."""
        enter, given = self._enter, x
        if enter is not None:
            x = in_call(self._graph, lambda: enter(given), training=training)
        start, count = start_values(self._graph, x), len(self._lanes)
        rows = tf.shape(next(iter(start.values())))[0]
        bounds = [rows * i // count for i in range(count + 1)]
        sizes = [high - low for low, high in itertools.pairwise(bounds)]
        # Of fewer rows than parts some get one that is another's, since layers fail without rows.
        first = [tf.minimum(low, rows - 1) for low in bounds[:-1]]
        cuts = [slice(low, tf.maximum(low + size, low + 1)) for low, size in zip(first, sizes, strict=True)]
        parts = [{i: value[cut] for i, value in start.items()} for cut in cuts]
        turns = _Turns()
        tapes: list[list[Taped]] = [[] for _ in parts]
        # What is ready at once is started in the order in which it was made.
        for part, number in self._schedule():
            segment, values = self._segments[number], parts[part]
            with turns.taken(self._lanes[part][self._places[number]]) as results:
                taped = Taped(self._graph, segment, values, training=training, tapes=training)
                results += taped.made
            tapes[part].append(taped)
            values.update(zip(segment.gives, taped.made, strict=True))
        check_has_no_losses(self._graph)
        for i in self._ends:
            if mask_of(parts[0][i]) is not None:
                raise InputError("an output has a mask of Keras, which parts of a batch would lose")
        return sizes, parts, tapes

    def _backward(self, gradients: list[list[Any]], tapes: list[list[Taped]]) -> list[tf.Tensor | None]:
        found = [dict(zip(self._ends, some, strict=True)) for some in gradients]
        turns, none = _Turns(), [None] * len(self._variables)
        sums: dict[str, list[tf.Tensor | None]] = {}
        for part, number in reversed(list(self._schedule())):
            segment, values = self._segments[number], found[part]
            device = self._lanes[part][self._places[number]]
            with turns.taken(device) as results:
                given = [values.get(i) for i in segment.gives]
                of_inputs, of_variables = tapes[part][number].pulled(given, self._variables)
                before = sums.get(device, none)
                sums[device] = [plus(*pair) for pair in zip(before, of_variables, strict=True)]
                results += [g for g in [*of_inputs, *sums[device]] if g is not None]
                for i, gradient in zip(segment.takes, of_inputs, strict=True):
                    values[i] = plus(values.get(i), gradient)
        total: list[tf.Tensor | None] = list(none)
        for some in sums.values():
            total = [plus(*pair) for pair in zip(total, some, strict=True)]
        return total


def _divided(gradient: tf.Tensor | None, sizes: Sequence[tf.Tensor]) -> list[tf.Tensor | None]:
    """A gradient of the rows of each part, zero for the row of one that has none."""
    if gradient is None:
        return [None] * len(sizes)
    further = [[0, 0]] * (len(gradient.shape) - 1)
    return [
        tf.pad(part, [[0, tf.maximum(1 - size, 0)], *further])
        for part, size in zip(tf.split(gradient, tf.stack(sizes), num=len(sizes)), sizes, strict=True)
    ]


class _Turns:
    """Devices, each of which does one thing after the other."""

    def __init__(self) -> None:
        self._before: dict[str, list[Any]] = {}

    @contextlib.contextmanager
    def taken(self, device: str) -> Iterator[list[Any]]:
        """While entered, operations are of the device and after the turn before; yields a list for results."""
        results: list[Any] = []
        with tf.device(device), tf.control_dependencies(self._before.get(device, [])):
            yield results
        self._before[device] = [result.op for result in results]
