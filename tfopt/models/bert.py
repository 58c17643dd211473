"""BERT-style encoders.

Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers", https://arxiv.org/abs/1810.04805.

Attention is written out with Dense layers and plain operations instead of `MultiHeadAttention`:
Keras 3 masks its scores by selection, an operator that LiteRT's fast path does not take, which cuts
the graph into pieces and makes an int8 encoder 1.4 times slower than the additive mask used here.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from tfopt._keras import extras, keras_api
from tfopt.errors import InputError
from tfopt.models.symbolic_ops import SymbolicOps

# Added to the scores of padding: small enough that softmax gives exactly zero, large enough for float16.
MASKED = -10_000.0
_ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu", "tanh")


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Shape of a BERT encoder; names as in the `config.json` of public checkpoints.

    Attributes:
        vocab_size: rows of the token table.
        hidden_size: width of the residual stream, a multiple of `num_attention_heads`.
        num_hidden_layers: encoder layers.
        num_attention_heads: heads of each attention.
        intermediate_size: width of the feed-forward layers.
        max_position_embeddings: longest sequence in tokens.
        type_vocab_size: rows of the segment table (inputs are one segment, row 0); 0 for none, as DistilBERT has.
        hidden_act: activation of the feed-forward layers, a Keras name, or "gelu_tanh", its approximation by tanh.
        layer_norm_eps: epsilon of the layer norms.
        hidden_dropout_prob: dropout after each block while training, in [0, 1).
        position_offset: row of the position table that the first token gets; RoBERTa begins at 2.
        shared_layers: whether all layers have the weights of one, as in ALBERT, https://arxiv.org/abs/1909.11942.
    """

    vocab_size: int
    hidden_size: int = 384
    num_hidden_layers: int = 6
    num_attention_heads: int = 12
    intermediate_size: int = 1536
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1
    position_offset: int = 0
    shared_layers: bool = False

    def __post_init__(self) -> None:
        for field in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
                      "intermediate_size", "max_position_embeddings"):  # fmt: skip
            if getattr(self, field) < 1:
                raise InputError(f"{field} must be 1 or more, got {getattr(self, field)}")
        if self.type_vocab_size < 0 or not 0 <= self.position_offset < self.max_position_embeddings:
            raise InputError(
                "type_vocab_size must be 0 or more and position_offset a row of the position table, got "
                f"{self.type_vocab_size} and {self.position_offset}"
            )
        if self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"hidden_size must be a multiple of num_attention_heads, got {self.hidden_size} "
                f"and {self.num_attention_heads}"
            )
        if self.hidden_act not in _ACTIVATIONS:
            raise InputError(f"hidden_act must be one of {', '.join(_ACTIVATIONS)}, got {self.hidden_act!r}")
        if not 0.0 <= self.hidden_dropout_prob < 1.0:
            raise InputError(f"hidden_dropout_prob must be in [0, 1), got {self.hidden_dropout_prob}")

    @property
    def most_tokens(self) -> int:
        """The longest text in tokens."""
        return self.max_position_embeddings - self.position_offset

    def with_dropout(self, rate: float) -> "BertConfig":
        """The same with another dropout while training, in [0, 1)."""
        return dataclasses.replace(self, hidden_dropout_prob=rate)


class BertLayers:
    """The layers of an encoder, with fresh weights.

    Args:
        config: its shape.
        generation: "tf_keras" or "keras".
    """

    def __init__(self, config: BertConfig, generation: str) -> None:
        self.config = config
        self.ops = SymbolicOps(generation)
        self._keras = keras_api.keras_module(generation)
        self._layers = self._keras.layers
        self._words: Any = None
        self._made: dict[str, Any] = {}

    def encode(self, ids: Any, mask: Any, types: Any) -> Any:
        """(batch, length) int32 ids, mask and, or None, token types -> (batch, length, hidden_size)."""
        c = self.config
        self._words = self._embedding(c.vocab_size, "word_embeddings")
        x = self._words(ids)
        if c.type_vocab_size:
            types = self.ops.zeros_like(ids) if types is None else types
            x = x + self._embedding(c.type_vocab_size, "token_type_embeddings")(types)
        positions = self.ops.positions(ids) + c.position_offset if c.position_offset else self.ops.positions(ids)
        x = x + self._embedding(c.max_position_embeddings, "position_embeddings")(positions)
        x = extras.carrier(self._keras, self.dropout(self.norm(x, "embeddings_norm")))
        # (batch, 1, 1, length), broadcast over heads and queries
        bias = (1.0 - self.ops.cast(mask, "float32"))[:, None, None, :] * MASKED
        for index in range(c.num_hidden_layers):
            x = self._layer(x, bias, f"layer_{0 if c.shared_layers else index}")
        return x

    def dense(self, x: Any, units: int, name: str, activation: str | None = None, bias: bool = True) -> Any:
        """(..., inputs) -> (..., units)."""
        dtype = self.ops.output_type if "logits" in name else None
        tanh = activation == "gelu_tanh"  # no activation of this name is in both generations
        layer = self._once(name, lambda: self._layers.Dense(
            units, None if tanh else activation, use_bias=bias, kernel_initializer=self._initializer(), name=name,
            dtype=dtype,
        ))  # fmt: skip
        return self.ops.gelu_tanh(layer(x)) if tanh else layer(x)

    def norm(self, x: Any, name: str) -> Any:
        """Normed along the last axis."""
        norm = self._layers.LayerNormalization
        return self._once(name, lambda: norm(epsilon=self.config.layer_norm_eps, name=name))(x)

    def dropout(self, x: Any) -> Any:
        """What training leaves out at random."""
        rate = self.config.hidden_dropout_prob
        return self._layers.Dropout(rate)(x) if rate else x

    def pooler(self, x: Any) -> Any:
        """What a classifier looks at, from a vector of each text: BERT's dense layer."""
        # DistilBERT, which has no token types, differs in this too.
        return self.dense(x, self.config.hidden_size, "pooler", "tanh" if self.config.type_vocab_size else "relu")

    def before_logits(self, x: Any) -> Any:
        """The vectors of tokens as a head takes them."""
        return x

    def words_of(self, x: Any, ids: Any) -> Any:
        """Logits of the words at each place, from the token table."""
        c = self.config
        x = self.norm(self.dense(x, c.hidden_size, "masked_lm_dense", c.hidden_act), "masked_lm_norm")
        table = self._words(self.ops.count_to(c.vocab_size, ids))[0]  # see `KerasParts.times_table`
        return self.ops.matmul(x, self.ops.transpose(table))

    def _layer(self, x: Any, bias: Any, name: str) -> Any:
        c = self.config
        attended = self.dropout(self._attention(x, bias, f"{name}_attention"))
        x = self.norm(x + attended, f"{name}_attention_norm")
        h = self.dense(x, c.intermediate_size, f"{name}_intermediate", c.hidden_act)
        h = self.dropout(self.dense(h, c.hidden_size, f"{name}_output"))
        return self.norm(x + h, f"{name}_output_norm")

    def _attention(self, x: Any, bias: Any, name: str) -> Any:
        c = self.config
        heads, size = c.num_attention_heads, c.hidden_size // c.num_attention_heads

        def split(part: str, permutation: tuple[int, int, int], scale: float | None = None) -> Any:
            projected = self.dense(x, c.hidden_size, f"{name}_{part}")
            if scale is not None:  # right behind the layer, where converters fold it into the weights
                projected = projected * scale
            return self._layers.Permute(permutation)(self._layers.Reshape((-1, heads, size))(projected))

        query = split("query", (2, 1, 3), 1.0 / math.sqrt(size))
        scores = self.ops.plus(self.ops.matmul(query, split("key", (2, 3, 1))), bias)
        context = self.ops.matmul(self._layers.Softmax()(scores), split("value", (2, 1, 3)))
        merged = self._layers.Reshape((-1, c.hidden_size))(self._layers.Permute((2, 1, 3))(context))
        return self.dense(merged, c.hidden_size, f"{name}_output")

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        """The layer of that name, made the first time."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def _initializer(self) -> Any:
        # A new one for each layer: tf_keras gives equal values to layers that share an instance.
        return self._keras.initializers.TruncatedNormal(stddev=0.02)

    def _embedding(self, rows: int, name: str) -> Any:
        width = self.config.hidden_size
        return self._layers.Embedding(rows, width, embeddings_initializer=self._initializer(), name=name)
