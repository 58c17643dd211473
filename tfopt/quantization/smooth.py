"""Moves the spread of activations into weights, so that one range per tensor suits them better.

Xiao et al., "SmoothQuant", https://arxiv.org/abs/2211.10438, where both have 8 bits. Of fewer, the roundings of
weights are what is lost, and those of channels that carry much count for more: Lin et al., "AWQ",
https://arxiv.org/abs/2306.00978. Where a layer norm, or a layer that is linear or
ends in a ReLU, feeds nothing but matrix products, its channels are divided by factors that those products
multiply by; the model computes what it did before. Of a layer that is linear, the channels may also be multiplied
by something on the way, as by the gate of a gated feed-forward block.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from tfopt._keras import keras_api
from tfopt._keras.keras_io import Inputs, call
from tfopt.errors import InputError, WorkFailedError
from tfopt.numerics.grids import Layout
from tfopt.quantization.kinds import class_names, einsum_input_axes, layouts, role
from tfopt.quantization.simulation import watched_inputs

_SAME = 1e-3


@contextlib.contextmanager
def smoothed(
    model: Any, inputs: Inputs, samples: dict[str, np.ndarray], strength: float, *, few_bits: bool = False
) -> Iterator[int]:
    """While entered, the model's activations are smoother; yields how many places were smoothed.

    Args:
        model: a functional model.
        inputs: how it is called.
        samples: representative inputs by name.
        strength: share of the spread that goes into the weights, in (0, 1); 0.5 balances both.
        few_bits: weights have fewer than 8 bits.

    Raises:
        InputError: `strength` outside its range.
    """
    if not 0 < strength < 1:
        raise InputError(f"smooth must be above 0 and below 1, got {strength}")
    places = find_places(model)
    readers = {id(layer): layer for _, products in places for layer in products}
    spread = _Spread()

    def watch(layer: Any, x: Any) -> None:
        if id(layer) in readers:
            spread.see(layer, np.asarray(x).reshape(-1, x.shape[-1]))

    with watched_inputs(model, watch):
        expected = call(model, inputs, samples)
    before = []
    try:
        for source, products in places:
            touched = [*_own(source), *(p.kernel for p in products)]
            before += [(v, keras_api.to_numpy(v)) for v in touched]
            kernels = [keras_api.to_numpy(p.kernel) for p in products]
            find = spread.important if few_bits else spread.balanced
            _move(source, products, kernels, factors=find(products[0], kernels, strength))
        for name, found in call(model, inputs, samples).items():
            off, size = float(np.abs(found - expected[name]).max()), float(np.abs(expected[name]).max())
            if off > _SAME * max(size, 1e-6):
                raise WorkFailedError(
                    f"smoothing changed output {name!r} by {off:.3g}; give a QuantizeConfig without smooth"
                )
        yield len(places)
    finally:
        for variable, value in reversed(before):  # some were touched twice
            variable.assign(value)


_RMS = "RMSNormalization"


def find_places(model: Any) -> list[tuple[Any, list[Any]]]:
    """Layers whose output goes into matrix products only, with those products."""
    places = []
    outputs = {str(name).rpartition("/")[2] for name in getattr(model, "output_names", None) or ()}
    for _, layer in keras_api.walk(model):
        norms = {"LayerNormalization", "BatchNormalization", _RMS}.intersection(class_names(layer))
        plain_norm = bool(norms) and _gamma(layer) is not None
        activation = getattr(getattr(layer, "activation", None), "__name__", "linear")
        linear = "Dense" in class_names(layer) and activation in ("linear", "relu")  # a factor passes through both
        if not (plain_norm or linear) or getattr(layer, "axis", -1) not in (-1, [-1], [2]):
            continue
        products, last = [], _gated(layer) if activation == "linear" else layer
        for reader in keras_api.consumers(last):
            found = _products(reader)
            products += found
            if not found:
                products = []
                break
        if products and outputs.isdisjoint({layer.name, last.name}):
            places.append((layer, products))
    return places


def _gated(layer: Any) -> Any:
    """The operation that multiplies a layer's output with something of the same width, else the layer itself."""
    readers = list(keras_api.consumers(layer))
    if len(readers) != 1 or not _is_product(readers[0]):
        return layer
    tensors = _tensors(readers[0]._inbound_nodes[0])
    same = len({id(t) for t in tensors}) == 2 and len({int(t.shape[-1] or 0) for t in tensors}) == 1
    return readers[0] if same else layer


def _is_product(reader: Any) -> bool:
    """Whether an operation multiplies two tensors, element by element."""
    symbol = getattr(reader, "symbol", None)  # of tf_keras's layers of operations
    return (symbol == "math.multiply" or "Multiply" in class_names(reader)) and len(reader._inbound_nodes) == 1


def _products(reader: Any) -> list[Any]:
    """The layers that multiply the last axis of their input, inside a reader that does nothing else with it."""
    if role(reader) == "attention":
        nodes = reader._inbound_nodes
        if len({id(t) for node in nodes for t in _tensors(node)}) != 1:
            return []  # query and value come from different places
        return [reader._query_dense, reader._key_dense, reader._value_dense]
    if len(reader._inbound_nodes) != 1 or len(_tensors(reader._inbound_nodes[0])) != 1:
        return []  # it is also fed by something else
    rows_first = layouts(reader).get("kernel", Layout(())).inputs == (0,)
    if "EinsumDense" in class_names(reader) and rows_first and einsum_input_axes(reader) == (-1,):
        return [reader]
    return [reader] if "Dense" in class_names(reader) else []


def _tensors(node: Any) -> list[Any]:
    found = getattr(node, "keras_inputs", None)
    return list(found) if found is not None else list(node.input_tensors)


def _own(source: Any) -> list[Any]:
    if "Dense" in class_names(source):
        return [source.kernel] + ([source.bias] if source.bias is not None else [])
    beta = getattr(source, "beta", None)
    return [_gamma(source)] + ([beta] if beta is not None else [])


def _gamma(norm: Any) -> Any:
    return norm.scale if _RMS in class_names(norm) else norm.gamma


class _Spread:
    """How far the channels of activations reach, and how much they carry."""

    def __init__(self) -> None:
        self._reach: dict[int, np.ndarray] = {}
        self._squares: dict[int, np.ndarray] = {}

    def see(self, layer: Any, rows: np.ndarray) -> None:
        """What goes into a layer: (rows, channels)."""
        key, squares = id(layer), (rows.astype(np.float64) ** 2).sum(0)
        self._reach[key] = np.maximum(self._reach.get(key, 0), np.abs(rows).max(0))
        self._squares[key] = self._squares.get(key, 0) + squares

    def balanced(self, layer: Any, kernels: list[np.ndarray], strength: float) -> np.ndarray:
        """Factors by which activations and weights reach as far, for a strength of 0.5."""
        reach, weights = self._reach[id(layer)], _reach_of(kernels)
        factors = np.maximum(reach, 1e-5) ** strength / np.maximum(weights, 1e-5) ** (1 - strength)
        return np.where((reach > 0) & (weights > 0), factors, 1.0).astype(np.float32)

    def important(self, layer: Any, kernels: list[np.ndarray], strength: float) -> np.ndarray:
        """Factors by which channels that carry more are rounded more finely, around 1.

        The exponent of the weights was found on a language model of 135M parameters in blocks of 32.
        """
        carries, weights = np.sqrt(self._squares[id(layer)]), _reach_of(kernels)
        valid = (carries > 0) & (weights > 0)
        if not valid.any():
            return np.ones(len(weights), np.float32)
        logs = strength * np.log(carries[valid]) - strength / 2 * np.log(weights[valid])
        factors = np.ones(len(weights))
        factors[valid] = np.exp(logs - logs.mean())
        return factors.astype(np.float32)


def _reach_of(kernels: list[np.ndarray]) -> np.ndarray:
    """The largest weight of each channel."""
    found: np.ndarray = np.max([np.abs(k).reshape(k.shape[0], -1).max(1) for k in kernels], axis=0)
    return found


def _move(source: Any, products: list[Any], kernels: list[np.ndarray], factors: np.ndarray) -> None:
    for variable in _own(source):
        variable.assign(keras_api.to_numpy(variable) / factors)  # the last axis is the channel in each of them
    for product, kernel in zip(products, kernels, strict=True):
        product.kernel.assign(kernel * factors.reshape([-1] + [1] * (kernel.ndim - 1)))
