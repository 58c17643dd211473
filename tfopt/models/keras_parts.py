"""The layers of `decoding.network` and its kin in Keras, of either generation."""

from typing import Any, Protocol

import numpy as np

from tfopt._keras import extras, keras_api
from tfopt.decoding.config import MASKED, CausalLMConfig, Norm
from tfopt.decoding.network import Linear, hidden_states
from tfopt.models.symbolic_ops import SymbolicOps
from tfopt.numerics.hadamard import factors


class Shape(Protocol):
    """What layers need to know of a configuration."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def norm(self) -> Norm: ...
    @property
    def norm_eps(self) -> float: ...
    @property
    def dropout(self) -> float: ...


def bias_of(keras: Any, ops: SymbolicOps, like: Any, units: int, name: str) -> Any:
    """A trained vector (1, 1, units), "<name>/beta", out of a layer that both generations have.

    A norm of zeros is its offset, with the statistics of any batch: Keras 3 takes them while it trains, whatever a
    call says of `training`.
    """
    zeros = ops.cast(ops.count_to(units, like) * 0, ops.output_type or "float32")[:, None, :]
    norm = keras.layers.BatchNormalization(scale=False, epsilon=1.0, name=name, dtype=ops.output_type)
    return norm(zeros, training=False)


class KerasLayers:
    """Layers with fresh weights.

    Args:
        shape: what is known of the network.
        generation: "tf_keras" or "keras".
    """

    def __init__(self, shape: Shape, generation: str) -> None:
        self.ops = SymbolicOps(generation)
        self.tables: dict[str, Any] = {}
        self._shape = shape
        self._keras = keras_api.keras_module(generation)
        self._layers = self._keras.layers

    def table(self, ids: Any, name: str, rows: int) -> Any:
        if name not in self.tables:
            self.tables[name] = self._layers.Embedding(
                rows, self._shape.hidden_size, embeddings_initializer=self._initializer(), name=name
            )
            if name == "token_embeddings":
                return extras.carrier(self._keras, self.tables[name](ids))
        return self.tables[name](ids)

    def linear(self, x: Any, layer: Linear) -> Any:
        tanh = layer.activation == "gelu_tanh"  # no activation of this name is in both generations
        dense = self._layers.Dense(
            layer.units, None if tanh else layer.activation, use_bias=layer.bias,
            kernel_initializer=self._initializer(), name=layer.name,
            dtype=self.ops.output_type if "logits" in layer.name else None,
        )  # fmt: skip
        return self.ops.gelu_tanh(dense(x)) if tanh else dense(x)

    def norm(self, x: Any, name: str) -> Any:
        if self._shape.norm == "layer":
            return self._layers.LayerNormalization(epsilon=self._shape.norm_eps, name=name)(x)
        if self.ops.is_keras3:
            return self._layers.RMSNormalization(epsilon=self._shape.norm_eps, name=name)(x)
        scaled = x * self.ops.rsqrt(self.ops.mean(x * x, -1) + self._shape.norm_eps)
        # No other layer of tf_keras multiplies by a vector of its own. Keras 3 would train it on statistics of the
        # batch: a functional model there overrides what a call says of `training`.
        return self._layers.BatchNormalization(center=False, epsilon=0.0, name=name)(scaled, training=False)

    def scaled(self, x: Any, factor: float) -> Any:
        return x * factor

    def dropout(self, x: Any) -> Any:
        return self._layers.Dropout(self._shape.dropout)(x) if self._shape.dropout else x

    def times_table(self, x: Any, like: Any, name: str = "token_embeddings") -> Any:
        """Products with every row of a table that `table` made; `like` is any integer input (batch, tokens)."""
        # The layer is called on every id, since a variable of its own cannot be a node of a functional model:
        # whatever replaces the layer's call, as quantization does, then holds for both of its uses.
        table = self.tables[name](self.ops.count_to(self._shape.vocab_size, like))[0]
        return self.ops.matmul(x, self.ops.transpose(table))

    def plus_bias(self, x: Any, like: Any, name: str) -> Any:
        """`x` plus a vector of its own along the last axis; `like` is any integer input (batch, tokens)."""
        return x + bias_of(self._keras, self.ops, like, units=int(x.shape[-1]), name=name)

    def split(self, projected: Any, heads: int, size: int) -> Any:
        """(batch, tokens, heads * size) -> (batch, heads, tokens, size)."""
        return self._layers.Permute((2, 1, 3))(self._layers.Reshape((-1, heads, size))(projected))

    def merged(self, context: Any) -> Any:
        """The way back."""
        heads, size = int(context.shape[1]), int(context.shape[3])
        return self._layers.Reshape((-1, heads * size))(self._layers.Permute((2, 1, 3))(context))

    def _initializer(self) -> Any:
        # A new one for each layer: tf_keras gives equal values to layers that share an instance.
        return self._keras.initializers.TruncatedNormal(stddev=0.02)


class KerasParts(KerasLayers):
    """The network of a decoder; each token sees those before it.

    Args:
        config: shape of the network.
        generation: "tf_keras" or "keras".
    """

    def __init__(self, config: CausalLMConfig, generation: str) -> None:
        super().__init__(config, generation)
        self.config = config
        self._turns: dict[tuple[float, ...], Any] = {}
        self._biases: dict[int | None, Any] = {}
        self._hadamards: dict[int, Any] = {}
        self._ids: Any = None
        self._mask: Any = None
        self._positions: Any = None

    def hidden(self, ids: Any, mask: Any) -> Any:
        """(batch, length) int32 ids, and a mask that is 1 on tokens -> (batch, length, hidden_size)."""
        self._ids, self._mask = ids, mask
        self._positions = self.ops.maximum(self.ops.cumsum(mask) - 1, 0)
        return hidden_states(self.config, self, ids, positions=self._positions)

    def attend(self, query: Any, key: Any, value: Any, layer: int) -> Any:
        c = self.config
        size, shared = c.head_size, c.num_attention_heads // c.key_value_heads
        if c.query_key_norm:
            query, key = self._normed_heads(query, layer, "query"), self._normed_heads(key, layer, "key")
        query = self.split(query, c.num_attention_heads, size)
        key, value = (self.split(x, c.key_value_heads, size) for x in (key, value))
        turn = self._rotation(c.frequencies_of(layer))
        if turn is not None:
            query, key = self._turned(query, *turn), self._turned(key, *turn)
        if shared > 1:
            key, value = self.ops.repeat(key, shared, 1), self.ops.repeat(value, shared, 1)
        scores = self.ops.matmul(query * c.score_scale, self._layers.Permute((1, 3, 2))(key))
        scores = self.ops.plus(self.capped(scores, c.attention_softcap), self._unseen(c.window_of(layer)))
        return self.merged(self.ops.matmul(self._layers.Softmax()(scores), value))

    def rotate(self, x: Any, block: int) -> Any:
        return self._layers.Reshape((-1, int(x.shape[-1])))(self._blocks_turned(x, block))

    def turn(self, x: Any, *, back: bool = False) -> Any:
        width = int(x.shape[-1])
        outer, inner = factors(width)
        rows = self._blocks_turned(x, len(inner))
        if len(outer) > 1:
            columns = self.ops.matmul_constant(self._layers.Permute((1, 3, 2))(rows), outer.T if back else outer)
            rows = self._layers.Permute((1, 3, 2))(columns)
        return self._layers.Reshape((-1, width))(rows)

    def _blocks_turned(self, x: Any, block: int) -> Any:
        """(batch, tokens, width) -> (batch, tokens, width / block, block), each block times a Hadamard matrix."""
        if block not in self._hadamards:  # one for all layers
            self._hadamards[block] = self.ops.hadamard(block, self._ids)
        blocks = self._layers.Reshape((-1, int(x.shape[-1]) // block, block))(x)
        return self.ops.matmul(blocks, self.ops.cast(self._hadamards[block], x.dtype))

    def capped(self, x: Any, limit: float | None) -> Any:
        """Bounded to plus and minus a limit."""
        return x if limit is None else self.ops.tanh(x * (1.0 / limit)) * limit

    def reaches(self, behind: Any, window: int | None) -> Any:
        """1.0 where a token is seen from so many places further on, (batch, length, length)."""
        seen = self.ops.cast(behind >= 0.0, "float32")
        return seen if window is None else seen * self.ops.cast(behind < float(window), "float32")

    def _normed_heads(self, projected: Any, layer: int, part: str) -> Any:
        """Each head normed by itself, (batch, tokens, heads * head_dim) as before."""
        width = int(projected.shape[-1])
        heads = self._layers.Reshape((-1, self.config.head_size))(projected)
        normed = self.norm(heads, f"layer_{layer}_attention_{part}_norm")
        return self._layers.Reshape((-1, width))(normed)

    def _unseen(self, window: int | None) -> Any:
        """(batch, 1, length, length): 0 where a token is seen; one for all layers that see alike."""
        if window not in self._biases:
            places = self.ops.cast(self.ops.positions(self._ids), "float32")
            behind = places[:, :, None] - places[:, None, :]  # how far back
            seen = self.reaches(behind, window) * self.ops.cast(self._mask, "float32")[:, None, :]
            self._biases[window] = ((1.0 - seen) * MASKED)[:, None]
        return self._biases[window]

    def _rotation(self, frequencies: tuple[float, ...] | None) -> Any:
        """Cosines and sines, once for all layers that turn alike; None for those that do not."""
        if frequencies is None:
            return None
        if frequencies not in self._turns:
            places = self.ops.cast(self._positions, "float32")[:, None, :, None]
            angles = self.ops.times(places, np.asarray(frequencies, np.float32))
            self._turns[frequencies] = self.ops.cos_sin(angles)
        return self._turns[frequencies]

    def _turned(self, x: Any, cosine: Any, sine: Any) -> Any:
        half = self.config.head_size // 2
        first, second = x[:, :, :, :half], x[:, :, :, half:]  # an ellipsis could not be saved
        times = self.ops.times_mixed
        turned = [times(first, cosine) - times(second, sine), times(second, cosine) + times(first, sine)]
        return self.ops.concat(turned)
