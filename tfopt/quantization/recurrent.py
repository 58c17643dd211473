"""Rounding in recurrent layers: the kernels of their cells, once for a call and outside of the loop over time."""

import contextlib
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from tfopt._keras import keras_api
from tfopt._keras.layer_calls import Call, attribute_of, original_call, swapped
from tfopt.errors import InputError
from tfopt.quantization.plan import PlannedWeight

if TYPE_CHECKING:
    from tfopt.quantization.simulation import Simulation

FUSED = "_could_use_gpu_kernel"  # tf_keras then reads the kernels behind the back of the cell


def refuse_loops(model: Any) -> None:
    """Refuses layers that cannot be written out step after step, which everything static needs.

    Raises:
        InputError: such a layer; it is named.
    """
    for path, layer in keras_api.walk(model):
        kinds = [kind.__name__ for kind in type(layer).__mro__]
        if "ConvRNN" in kinds and keras_api.generation_of(layer) == "tf_keras":  # which ignores `unroll`
            raise InputError(
                f"layer {path!r} of class {kinds[0]} runs as a loop in tf_keras, and a TFLite file holds no static "
                "integers inside one: use dynamic activations, or build the model with Keras 3"
            )


def recurrent(simulation: "Simulation", layer: Any, path: str, own: list[PlannedWeight]) -> Call:
    """The call of a layer that runs cells over time.

    What a cell keeps from one step to the next stays in float: it is between -1 and 1 or grows slowly, and a static
    file finds its range on data.
    """
    original, static = original_call(layer), simulation.config.is_static
    names = [(w, attribute_of(w.weight.layer, w.weight.variable)) for w in own]
    point = simulation.add_point(layer, path, "output") if static else None

    def call(inputs: Any, *args: Any, **kwargs: Any) -> Any:
        with contextlib.ExitStack() as stack:
            for weight, name in names:
                kernel = tf.convert_to_tensor(keras_api.tf_variable(weight.weight.variable))
                value = simulation.weight(weight, kernel)
                stack.enter_context(swapped(weight.weight.layer, {name: value}))
            if vars(layer).get(FUSED):
                stack.enter_context(swapped(layer, {FUSED: False}))
            outputs = original(simulation.rows(layer, inputs, (-1,)), *args, **kwargs)
        if point is None:
            return outputs
        several = isinstance(outputs, list | tuple)
        first = simulation.mark(outputs[0] if several else outputs, point, layer)
        return type(outputs)([first, *outputs[1:]]) if several else first

    return call
