"""Shapes of the weights of a decoder, told by walking through its network without any weights."""

from typing import Any

from tfopt.decoding.config import CausalLMConfig
from tfopt.decoding.network import Linear, hidden_states


def weight_shapes(config: CausalLMConfig) -> dict[str, tuple[int, ...]]:
    """Path of a weight, as a Keras model of `models.causal_lm` has it -> its shape.

    >>> shapes = weight_shapes(CausalLMConfig(64, 32, 1, 4, intermediate_size=48))
    >>> shapes["layer_0_up/kernel"], shapes["final_norm/gamma"]
    ((32, 48), (32,))
    """
    parts = _Shapes(config)
    parts.width_of(hidden_states(config, parts, None, positions=None))
    if not config.tie_word_embeddings:
        parts.linear(_Width(config.hidden_size), Linear("logits", config.vocab_size, False))
    return parts.found


class _Width:
    """What goes from layer to layer: so many numbers for each token."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __add__(self, other: "_Width") -> "_Width":
        return self

    __mul__ = __add__


class _Shapes:
    """Layers that only note their weights."""

    def __init__(self, config: CausalLMConfig) -> None:
        self._config = config
        self.found: dict[str, tuple[int, ...]] = {}

    @staticmethod
    def width_of(x: Any) -> int:
        return int(x.size)

    def table(self, ids: Any, name: str, rows: int) -> _Width:
        self.found[f"{name}/embeddings"] = (rows, self._config.hidden_size)
        return _Width(self._config.hidden_size)

    def linear(self, x: _Width, layer: Linear) -> _Width:
        self.found[f"{layer.name}/kernel"] = (x.size, layer.units)
        if layer.bias:
            self.found[f"{layer.name}/bias"] = (layer.units,)
        return _Width(layer.units)

    def norm(self, x: _Width, name: str) -> _Width:
        self._note_norm(name, x.size)
        return x

    def scaled(self, x: _Width, factor: float) -> _Width:
        return x

    def attend(self, query: _Width, key: _Width, value: _Width, layer: int) -> _Width:
        if self._config.query_key_norm:
            for part in ("query", "key"):
                self._note_norm(f"layer_{layer}_attention_{part}_norm", self._config.head_size)
        return query

    def rotate(self, x: _Width, block: int) -> _Width:
        return x

    def turn(self, x: _Width, *, back: bool = False) -> _Width:
        return x

    def dropout(self, x: _Width) -> _Width:
        return x

    def _note_norm(self, name: str, size: int) -> None:
        self.found[f"{name}/gamma"] = (size,)
        if self._config.norm == "layer":
            self.found[f"{name}/beta"] = (size,)
