"""A segment of a graph that was run, and its gradients."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfopt._keras.in_call import in_call
from tfopt.structure.segments import Segment, run_segment

Gradients = Sequence[tf.Tensor | None]


class Taped:
    """Runs a segment, for the graph of a `tf.function`.

    Args:
        graph: the functional model that the segment is of.
        segment: what is run.
        values: tensor by identity, of all that the segment takes.
        training: what the layers see.
        tapes: whether gradients are asked for; without it nothing is kept for them.

    Attributes:
        made: the tensors that the segment gives.
    """

    def __init__(
        self,
        graph: Any,
        segment: Segment,
        values: Mapping[int, Any],
        *,
        training: bool = True,
        tapes: bool = True,
    ) -> None:
        # Copies, since Keras 3's attention takes masks off what it is given.
        self._taken = [tf.identity(values[i]) for i in segment.takes]
        for i, new in zip(segment.takes, self._taken, strict=True):
            put_mask(new, mask_of(values[i]))
        known = dict(zip(segment.takes, self._taken, strict=True))
        self._tape = tf.GradientTape()
        with self._tape if tapes else contextlib.nullcontext():
            if tapes:
                self._tape.watch([t for t in self._taken if t.dtype.is_floating])
            self.made = in_call(graph, lambda: run_segment(segment, known, training=training), training=training)

    def pulled(self, gradients: Gradients, variables: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Gradients of what the segment took, and of variables, None where there are none.

        Args:
            gradients: of what it gave, or None.
            variables: any.
        """
        pairs = zip(self.made, gradients, strict=True)
        known = [(made, gradient) for made, gradient in pairs if gradient is not None and made.dtype.is_floating]
        if not known:
            return [None] * len(self._taken), [None] * len(variables)
        made, given = zip(*known, strict=True)
        found = self._tape.gradient(list(made), [*self._taken, *variables], output_gradients=list(given))
        dense = [None if gradient is None else tf.convert_to_tensor(gradient) for gradient in found]
        return dense[: len(self._taken)], dense[len(self._taken) :]


def mask_of(tensor: Any) -> Any:
    """The mask that Keras keeps on a tensor, or None."""
    return getattr(tensor, "_keras_mask", None)


def put_mask(tensor: Any, mask: Any) -> None:
    """Puts a mask on a tensor that stands for another, if it had one."""
    if mask is not None:
        tensor._keras_mask = mask
