"""Gradient checkpointing: what is inside a transformer's layers is computed again when its gradients are.

Chen et al., "Training Deep Nets with Sublinear Memory Cost", https://arxiv.org/abs/1604.06174: between the passes a
layer keeps what it takes, for one more computation of it. `tf.recompute_grad` would draw other masks of dropout in
the second pass, and count what passes a second time.
"""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfopt._keras import keras_api
from tfopt._keras.in_call import in_call
from tfopt._keras.replay import Replay, Replayed
from tfopt._keras.training import plus
from tfopt.errors import InputError
from tfopt.structure.blocks import calls_of_blocks
from tfopt.structure.inlined import inlined
from tfopt.structure.nodes import flat, functional, struct_of
from tfopt.structure.segments import Segment, check_has_no_losses, outputs_from, segments_of, start_values
from tfopt.structure.taped import Gradients, Taped, mask_of, put_mask

Pull = Callable[[Gradients], list[tf.Tensor | None]]
# What runs a second time must change nothing; these are the stateful operations that only read.
_READS = {"ReadVariableOp", "ResourceGather", "PlaceholderWithDefault", "Placeholder", "VarHandleOp"}


class Recomputed:
    """A transformer that trains in little memory: gradients are those of the model itself.

    Args:
        model: functional, of either generation, with layers of attention that repeat.
        enter: what a technique does to the model's inputs (`compress.base.Prepared`).

    Raises:
        InputError: a model whose layers are not known; from a call, one that has losses inside.
    """

    def __init__(self, model: Any, enter: Callable[[Any], Any] | None = None) -> None:
        self._graph, self._enter = inlined(model), enter
        groups = calls_of_blocks(self._graph)
        if not groups:
            raise InputError(
                f"model {model.name!r} has no layers of attention between tensors of one shape, which could be "
                "computed again; train it without gradient_checkpointing"
            )
        repeated = {node.outputs for group in groups for node in group}
        self._variables = [keras_api.tf_variable(v) for v in model.trainable_variables]
        self._segments = segments_of(self._graph, groups)
        self._again = {s.gives for s in self._segments if s.nodes[0].outputs in repeated}
        inside = [*keras_api.walk(self._graph), *keras_api.operations(self._graph)]
        self._replayed = Replayed([model, *(operation for _, operation in inside)])

    def __call__(self, x: Any) -> tuple[Any, Pull]:
        """Answers to a batch, as in training; for the graph of a `tf.function`.

        Returns:
            The answers, and a function from a gradient for each of their tensors to one for each trainable
            variable of the model, None where they do not depend on it.
        """
        enter, given = self._enter, x
        if enter is not None:
            x = in_call(self._graph, lambda: enter(given))
        values = start_values(self._graph, x)
        back = [self._forward(segment, values) for segment in self._segments]
        check_has_no_losses(self._graph)
        ends = [id(tensor) for tensor in flat(struct_of(functional(self._graph), "outputs"))]

        def pull(gradients: Gradients) -> list[tf.Tensor | None]:
            found = dict(zip(ends, gradients, strict=True))
            sums: list[tf.Tensor | None] = [None] * len(self._variables)
            for segment, backward in zip(reversed(self._segments), reversed(back), strict=True):
                of_inputs, of_variables = backward([found.pop(i, None) for i in segment.gives])
                for i, gradient in zip(segment.takes, of_inputs, strict=True):
                    found[i] = plus(found.get(i), gradient)
                sums = [plus(*pair) for pair in zip(sums, of_variables, strict=True)]
            return sums

        return outputs_from(self._graph, values), pull

    def _forward(self, segment: Segment, values: dict[int, tf.Tensor]) -> Callable[[Gradients], Any]:
        """Adds what a segment gives to `values`; returns its backward pass."""
        taken = [values[i] for i in segment.takes]
        masks = [mask_of(tensor) for tensor in taken]
        if segment.gives not in self._again:
            taped = Taped(self._graph, segment, values)
            values.update(zip(segment.gives, taped.made, strict=True))
            return lambda gradients: taped.pulled(gradients, self._variables)
        replay = Replay()
        with self._replayed.under(replay):
            # Nothing takes note of this pass, so that nothing of it is kept.
            made = Taped(self._graph, segment, values, training=True, tapes=False).made
        values.update(zip(segment.gives, made, strict=True))

        def backward(gradients: Gradients) -> Any:
            if all(gradient is None for gradient in gradients):
                return [None] * len(taken), [None] * len(self._variables)
            replay.again()
            again = after(taken, gradients)
            for tensor, mask in zip(again, masks, strict=True):
                put_mask(tensor, mask)
            count = len(tf.compat.v1.get_default_graph().get_operations())
            with self._replayed.under(replay):
                second = Taped(self._graph, segment, dict(zip(segment.takes, again, strict=True)))
            _check_changes_nothing(segment, count)
            return second.pulled(gradients, self._variables)

        return backward


def after(tensors: Sequence[tf.Tensor], others: Gradients) -> list[tf.Tensor]:
    """The tensors, once the others are known; XLA and Grappler would merge equal computations otherwise."""
    first = next(other for other in others if other is not None)
    # Of data, not of control, which XLA does not keep; zero whatever the value is.
    element = tf.cast(tf.reshape(first, [-1])[:1], tf.float32)
    zero = tf.reduce_sum(tf.where(tf.equal(element, element), 0.0, 0.0 * tf.ones_like(element)))
    return [t + tf.cast(zero, t.dtype) if t.dtype.is_floating else tf.identity(t) for t in tensors]


def _check_changes_nothing(segment: Segment, count: int) -> None:
    made = tf.compat.v1.get_default_graph().get_operations()[count:]
    wrong = [op for op in made if op.op_def is not None and op.op_def.is_stateful and op.type not in _READS]
    if wrong:
        inside = wrong[0].name.split("/")
        names = [node.operation.name for node in segment.nodes if node.operation.name in inside]
        raise InputError(
            f"{names[0] if names else wrong[0].name} changes something, or draws random numbers, while it trains "
            f"({wrong[0].type}), and cannot be computed again; train without gradient_checkpointing"
        )
