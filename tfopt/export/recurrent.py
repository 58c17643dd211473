"""Traces recurrent layers so that nothing of one call is left for the next.

tf_keras marks its LSTM for a fused operator, whose state the TFLite converter makes a variable of the file: it
survives the call, and the same input gets another answer the second time. A plain loop keeps it in the call.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from tfopt._keras import keras_api
from tfopt._keras.layer_calls import swapped
from tfopt.errors import InputError
from tfopt.quantization.recurrent import FUSED


def refuse_stateful(model: Any) -> None:
    """Refuses layers that are meant to go on where the last call ended.

    Raises:
        InputError: such a layer; it is named.
    """
    for path, layer in keras_api.walk(model):
        if getattr(layer, "stateful", False) and not keras_api.is_model(layer):
            raise InputError(
                f"layer {path!r} keeps its state between calls (stateful=True), and artifacts start anew at every "
                "call: make it with stateful=False and give it whole sequences"
            )


@contextlib.contextmanager
def unfused(model: Any, unrolled: bool = False) -> Iterator[None]:
    """While entered, calls of the model's recurrent layers are traced as plain loops, or step after step."""
    with contextlib.ExitStack() as stack:
        for _, layer in keras_api.walk(model):
            values = {FUSED: False} if vars(layer).get(FUSED) else {}
            if unrolled and hasattr(layer, "unroll") and hasattr(layer, "cell"):
                values["unroll"] = True
            if values:
                stack.enter_context(swapped(layer, values))
        yield
