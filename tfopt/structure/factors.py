"""Layers that can become two thinner ones, and what these are."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from tfopt._keras import keras_api

_CONVOLUTIONS = ("Conv1D", "Conv2D")


@dataclasses.dataclass(frozen=True)
class Factorable:
    """A matrix of a layer.

    Attributes:
        path: of the weight.
        layer: the layer.
        matrix: its value as (inputs, outputs).
        first, second: names of the two layers, whose weights have the last part `weight` and "kernel".
    """

    path: str
    layer: Any
    matrix: np.ndarray = dataclasses.field(repr=False)
    first: str
    second: str
    weight: str

    @property
    def largest(self) -> int:
        """The largest rank at which two factors have fewer elements."""
        rows, columns = self.matrix.shape
        return (rows * columns - 1) // (rows + columns)

    def values(self, left: np.ndarray, right: np.ndarray) -> dict[str, np.ndarray]:
        """New weights by path."""
        kernel = keras_api.to_numpy(getattr(self.layer, self.weight))
        rank = left.shape[1]
        if self.weight == "embeddings":
            return {f"{self.first}/embeddings": left, f"{self.second}/kernel": right}
        ones = (1,) * (kernel.ndim - 2) if _is(self.layer, *_CONVOLUTIONS) else ()
        first = left.reshape(*kernel.shape[:-1], rank) if ones else left
        return {
            f"{self.first}/kernel": first,
            f"{self.second}/kernel": right.reshape(*ones, rank, *self._outputs(kernel)),
        }

    def _outputs(self, kernel: np.ndarray) -> tuple[int, ...]:
        return kernel.shape[1:] if _is(self.layer, "EinsumDense") else kernel.shape[-1:]


def factorable(path: str, layer: Any) -> Factorable | str:
    """The matrix of a layer, or why it stays whole."""
    own = layer.name  # which may hold strokes itself, as in MobileNet
    name = path.removesuffix(own)
    if _is(layer, "Embedding"):
        table = keras_api.to_numpy(layer.embeddings)
        return Factorable(
            f"{path}/embeddings", layer, table, first=path, second=f"{name}{own}_up", weight="embeddings"
        )
    if not _is(layer, "Dense", "EinsumDense", *_CONVOLUTIONS):
        return f"{type(layer).__name__} has no matrix that two layers could make up"
    kernel = keras_api.to_numpy(layer.kernel)
    if _is(layer, "EinsumDense") and not _sums_last(layer.equation):
        return "its equation sums over more than the last axis"
    if _is(layer, *_CONVOLUTIONS) and layer.groups > 1:
        return "a convolution in groups is no single matrix"
    rows = kernel.shape[0] if _is(layer, "EinsumDense") else int(np.prod(kernel.shape[:-1]))
    return Factorable(
        f"{path}/kernel", layer, kernel.reshape(rows, -1), first=f"{name}{own}_low", second=path, weight="kernel"
    )


def two_layers(found: Factorable, rank: int) -> Callable[[Any], Any]:
    """The two layers, one after the other; they still have to get their weights."""
    layer, layers = found.layer, keras_api.keras_module(keras_api.generation_of(found.layer)).layers
    config = layer.get_config()
    low, up = f"{layer.name}_low", f"{layer.name}_up"
    if found.weight == "embeddings":
        first = type(layer).from_config({**config, "output_dim": rank})
        second = layers.Dense(config["output_dim"], use_bias=False, name=up, dtype=layer.dtype_policy)
    elif _is(layer, *_CONVOLUTIONS):
        plain = {"filters": rank, "use_bias": False, "activation": None, "name": low}
        first = type(layer).from_config({**config, **plain})
        ones = {"kernel_size": 1, "strides": 1, "dilation_rate": 1, "padding": "valid"}
        second = type(layer).from_config({**config, **ones})
    else:
        first = layers.Dense(rank, use_bias=False, name=low, dtype=layer.dtype_policy)
        second = type(layer).from_config(config)
    return lambda x: second(first(x))


def _sums_last(equation: str) -> bool:
    """Whether "ab,bcd->acd": one axis is summed over, the last of the input and the first of the kernel."""
    operands, _, result = equation.replace(" ", "").partition("->")
    value, kernel = operands.split(",")
    return value[-1] == kernel[0] and kernel[0] not in result and result.endswith(kernel[1:])


def _is(layer: Any, *names: str) -> bool:
    return type(layer).__name__ in names  # a class derived from one of these may compute something else
