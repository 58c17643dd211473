"""The calls that replace those of layers while quantization is simulated."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from tfopt._keras import keras_api
from tfopt._keras.layer_calls import Call, attribute_of, original_call, swapped
from tfopt.quantization.kinds import ATTENTION, class_names, einsum_input_axes, linear_or_relu, role
from tfopt.quantization.placement import feeds_norm, makes_scores, marks_output
from tfopt.quantization.plan import PlannedWeight
from tfopt.quantization.points import Kind
from tfopt.quantization.recurrent import recurrent

_MOST_INPUTS = 4  # of a model, whose float ones get fixed ranges

if TYPE_CHECKING:
    from tfopt.quantization.simulation import Simulation


# Far below what a softmax still sees, and close enough: integer additions are wrong, or silently leave the mask
# out, where one scale is hundreds of times the other.
_MASKED = -1_000.0


def new_calls(simulation: "Simulation") -> Iterator[tuple[Any, str, Call]]:
    """Yields (owner, attribute, function): what is to be replaced where."""
    planned: dict[int, list[PlannedWeight]] = {}
    for weight in simulation.plan.weights:
        planned.setdefault(id(weight.weight.layer), []).append(weight)
    for path, layer in keras_api.walk(simulation.model):
        own = planned.get(id(layer), [])
        kind = role(layer)
        if kind == "product" and (own or simulation.config.is_static):
            yield layer, "call", _product(simulation, layer, path, own=own)
        elif kind == "table" and own:
            yield layer, "call", _table(simulation, layer, own[0])
        elif kind == "recurrent":
            inner = [weight for _, cell in keras_api.walk(layer) for weight in planned.get(id(cell), [])]
            yield layer, "call", recurrent(simulation, layer, path, own=inner)
        elif simulation.config.is_static:
            yield from _static(simulation, layer, path, kind=kind)
    if simulation.config.is_static:
        for path, operation in keras_api.operations(simulation.model):
            yield from _static(simulation, operation, path, kind=role(operation))
    yield simulation.model, "call", _root(simulation)


def enter(simulation: "Simulation", given: Any) -> Any:
    """Counts a step, and rounds the float inputs of the whole model where those have fixed ranges."""
    model = simulation.model
    simulation.count_step(model)
    keys = [f"model:input{i}" for i in range(_MOST_INPUTS * simulation.config.is_static)]
    flat = tf.nest.flatten(given)
    if not keys or len(flat) > len(keys):
        return given
    # Functional models of Keras 3 are given arrays as they are.
    flat = [tf.convert_to_tensor(x) if isinstance(x, np.ndarray) else x for x in flat]
    marked = [simulation.mark(x, key, model) for x, key in zip(flat, keys, strict=False)]
    return tf.nest.pack_sequence_as(given, marked)


def _static(simulation: "Simulation", node: Any, path: str, kind: str) -> Iterator[tuple[Any, str, Call]]:
    """Replacements for layers without kernels, whose outputs get fixed ranges."""
    names = class_names(node)
    if kind == "softmax":
        yield node, "call", _softmax(simulation, node, path)
    elif kind == "norm" and "LayerNormalization" in names and is_plain_norm(node):
        yield node, "call", _norm(simulation, node, path)
    elif kind == "attention" and _is_own_attention(node):
        yield node, "_compute_attention", _attention(simulation, node, path)
    elif kind == "norm" or kind == "computes" or (kind == "unknown" and not keras_api.sublayers(node)):
        yield node, "call", _computes(simulation, node, path)


def _root(simulation: "Simulation") -> Call:
    """The call of the whole model."""
    original = original_call(simulation.model)
    for number in range(_MOST_INPUTS * simulation.config.is_static):
        simulation.add_point(simulation.model, "model", f"input{number}", learns=False)

    def call(*args: Any, **kwargs: Any) -> Any:
        if args:
            return original(enter(simulation, args[0]), *args[1:], **kwargs)
        simulation.count_step(simulation.model)
        return original(**kwargs)

    return call


def _product(simulation: "Simulation", layer: Any, path: str, own: list[PlannedWeight]) -> Call:
    original, axes = original_call(layer), _input_axes(layer)
    names = {attribute_of(layer, w.weight.variable): w for w in own}
    static = simulation.config.is_static
    inner = simulation.add_point(layer, path, "product") if static and not linear_or_relu(layer) else None
    marked = static and marks_output(layer)
    wide = marked and feeds_norm(layer, through_add=True)
    outer = simulation.add_point(layer, path, "output", wide=wide) if marked else None
    symmetric = any("Depthwise" in name for name in class_names(layer))  # as its kernel in LiteRT has it
    in_blocks = any(isinstance(w.spec.granularity, int) for w in own)
    activation = getattr(layer, "activation", None)
    kind = _kind(getattr(activation, "__name__", ""))

    def activate(x: Any) -> Any:
        return activation(simulation.mark(x, str(inner), layer))  # type: ignore[misc]

    def call(inputs: Any, *args: Any, **kwargs: Any) -> Any:
        values: dict[str, Any] = {name: simulation.weight(w, _tensor(w)) for name, w in names.items()}
        if inner is not None:
            values["activation"] = activate
        with swapped(layer, values):
            outputs = original(simulation.rows(layer, inputs, axes, symmetric=symmetric), *args, **kwargs)
        if in_blocks:
            return simulation.keep_apart(outputs)
        if outer is None:
            return outputs
        return simulation.mark(outputs, outer, layer, kind=kind)

    return call


def _kind(activation: str) -> Kind:
    """The kind of output an activation gives: some have a grid that runtimes prescribe."""
    kinds: dict[str, Kind] = {"sigmoid": "sigmoid", "tanh": "tanh", "softmax": "softmax"}
    return kinds.get(activation, "range")


def _tensor(planned: PlannedWeight) -> tf.Tensor:
    return tf.convert_to_tensor(keras_api.tf_variable(planned.weight.variable))


def _input_axes(layer: Any) -> tuple[int, ...]:
    """Axes of the input that share one range at run time: what a product sums over, or a whole sample."""
    names = class_names(layer)
    if "EinsumDense" in names:
        return einsum_input_axes(layer)
    if "Dense" in names:
        return (-1,)
    return (1, 2) if any("1D" in name for name in names) else (1, 2, 3)


def _table(simulation: "Simulation", layer: Any, planned: PlannedWeight) -> Call:
    original = original_call(layer)
    name = attribute_of(layer, planned.weight.variable)
    by_row = simulation.rounds_by_row(planned)

    def call(inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if by_row and not args and not kwargs.get("reverse"):
            rows = original(inputs, **kwargs)
            rounded = simulation.weight(planned, tf.reshape(rows, [-1, rows.shape[-1]]))
            return tf.reshape(rounded, tf.shape(rows))
        with swapped(layer, {name: simulation.weight(planned, _tensor(planned))}):
            return original(inputs, *args, **kwargs)

    return call


def _computes(simulation: "Simulation", node: Any, path: str) -> Call:
    original = original_call(node)
    marked = marks_output(node)
    wide = marked and (feeds_norm(node, through_add=True) or makes_scores(node))
    key = simulation.add_point(node, path, "output", wide=wide) if marked else ""
    activation = getattr(getattr(node, "activation", None), "__name__", "") or type(node).__name__.lower()
    kind = _kind(activation)

    def call(*args: Any, **kwargs: Any) -> Any:
        outputs = original(*args, **kwargs)
        return simulation.mark(outputs, key, node, kind=kind) if marked else outputs

    return call


def _softmax(simulation: "Simulation", node: Any, path: str) -> Call:
    original = original_call(node)
    scores = simulation.add_point(node, path, "scores")
    output = simulation.add_point(node, path, "output", learns=False)

    def call(inputs: Any, *args: Any, **kwargs: Any) -> Any:
        inputs = simulation.mark(inputs, scores, node, kind="scores")
        return simulation.mark(original(inputs, *args, **kwargs), output, node, kind="softmax")

    return call


def is_plain_norm(layer: Any) -> bool:
    """A layer norm over the last axis, in no variant of the formula and with nobody else's call."""
    axis = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    rank = len(layer.gamma.shape) if layer.gamma is not None else 0
    return rank == 1 and len(axis) == 1 and not getattr(layer, "rms_scaling", False) and "call" not in vars(layer)


def norm_call(layer: Any, mark: Callable[[tf.Tensor, str], tf.Tensor], floor: float = 0.0) -> Call:
    """The layer norm with the mean taken off first.

    Args:
        layer: a plain layer norm.
        mark: sees every tensor on the way with its name, and gives it back.
        floor: added where a variance that was rounded to zero would have no gradient.
    """

    def call(x: tf.Tensor, *args: Any, **kwargs: Any) -> tf.Tensor:
        if layer.axis not in (-1, [-1], len(x.shape) - 1, [len(x.shape) - 1]):
            return type(layer).call(layer, x, *args, **kwargs)
        centered = mark(x - mark(tf.reduce_mean(x, -1, keepdims=True), "mean"), "centered")
        variance = mark(tf.reduce_mean(mark(centered * centered, "square"), -1, keepdims=True), "variance")
        stable = mark(variance + layer.epsilon, "stable")
        inverse = mark(tf.math.rsqrt(stable + floor if floor else stable), "inverse")
        scaled = mark(centered * inverse, "normed") * tf.cast(layer.gamma, x.dtype)
        if layer.beta is None:
            return mark(scaled, "output")
        return mark(mark(scaled, "scaled") + tf.cast(layer.beta, x.dtype), "output")

    return call


_NORM_POINTS = ("mean", "centered", "square", "variance", "stable", "inverse", "normed", "scaled", "output")
# Squares and variances of different tokens lie orders of magnitude apart, and a trained residual has single
# values a hundred times larger than the rest: in 8 bits all the others would become zero. See also
# Bondarenko et al., https://arxiv.org/abs/2109.12948.
_WIDE = ("mean", "centered", "square", "variance", "stable", "inverse", "normed")


def _norm(simulation: "Simulation", layer: Any, path: str) -> Call:
    keys = {name: simulation.add_point(layer, path, name, wide=name in _WIDE) for name in _NORM_POINTS}
    floor = 0.0 if simulation.mode == "frozen" else 1e-12
    return norm_call(layer, lambda x, name: simulation.mark(x, keys[name], layer), floor)


def _is_own_attention(layer: Any) -> bool:
    """Whether the layer computes attention as Keras does, not by code of its own."""
    home = next((base for base in type(layer).__mro__ if "_compute_attention" in vars(base)), object)
    return home.__name__ in ATTENTION and home.__module__.partition(".")[0] in keras_api.GENERATIONS


def _attention(simulation: "Simulation", layer: Any, path: str) -> Call:
    names = ("query", "product", "keep", "mask", "scores", "probabilities", "context")
    keys = {name: simulation.add_point(layer, path, name) for name in names}
    grouped = "GroupedQueryAttention" in class_names(layer)
    head_dim, dropout = (layer.head_dim, layer.dropout) if grouped else (layer._key_dim, layer._dropout)
    axes = 1 if grouped else len(layer._attention_axes)

    def mark(x: tf.Tensor, name: str, kind: Any = "range") -> tf.Tensor:
        return simulation.mark(x, keys[name], layer, kind=kind)

    def compute(
        query: Any,
        key: Any,
        value: Any,
        attention_mask: Any = None,
        training: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Any, Any]:
        scaled = mark(query * tf.cast(tf.math.rsqrt(float(head_dim)), query.dtype), "query")
        operands = (scaled, key) if grouped else (key, scaled)
        scores = mark(tf.einsum(layer._dot_product_equation, *operands), "product")
        if kwargs.get("use_causal_mask"):
            causal = tf.cast(layer._compute_causal_mask(query, value), tf.bool)
            attention_mask = causal if attention_mask is None else tf.cast(attention_mask, tf.bool) & causal
        if attention_mask is not None:
            mask = tf.cast(attention_mask, scores.dtype)
            for _ in range(len(scores.shape) - len(mask.shape)):
                mask = tf.expand_dims(mask, -axes * 2 - 1)
            scores = scores + mark(mark(1.0 - mask, "keep") * _MASKED, "mask")
        probabilities = mark(tf.nn.softmax(mark(scores, "scores", "scores")), "probabilities", "softmax")
        dropped = layer._dropout_layer(probabilities, training=training) if dropout else probabilities
        return mark(tf.einsum(layer._combine_equation, dropped, value), "context"), probabilities

    return compute
