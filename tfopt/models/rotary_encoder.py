"""Encoders with rotary positions and local layers: ModernBERT, EmbeddingGemma and their like.

Warner et al., "Smarter, Better, Faster, Longer", https://arxiv.org/abs/2412.13663; Vera et al., "EmbeddingGemma",
https://arxiv.org/abs/2509.20354. The network is that of `decoding.network`, whose tokens see both sides here.
"""

import dataclasses
from typing import Any

from tfopt.decoding.config import CausalLMConfig
from tfopt.decoding.network import Linear
from tfopt.errors import InputError
from tfopt.models.keras_parts import KerasParts


@dataclasses.dataclass(frozen=True)
class RotaryEncoderConfig:
    """Shape of an encoder with rotary positions.

    Attributes:
        network: shape of its layers; a token sees those nearer than `sliding_window` on either side.
        embedding_norm: the rows of the token table are normed.
        first_norm: the first attention has a norm before it, as the others have.
        norm_bias: layer norms have biases.
        prediction_head: heads have a dense layer and a norm of their own before logits, as ModernBERT has them.
        embedding_widths: units of the dense layers behind the pooled vector of the head "embedding".

    Raises:
        InputError: positions that are not rotary, or a width outside its range.
    """

    network: CausalLMConfig
    embedding_norm: bool = False
    first_norm: bool = True
    norm_bias: bool = True
    prediction_head: bool = False
    embedding_widths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "embedding_widths", tuple(self.embedding_widths))
        if self.network.positions != "rotary":
            raise InputError(f"network.positions must be 'rotary', got {self.network.positions!r}")
        if not all(0 < width <= 2**20 for width in self.embedding_widths):
            raise InputError(f"embedding_widths must be from 1 to {2**20:,}, got {self.embedding_widths}")

    @property
    def vocab_size(self) -> int:
        """Rows of the token table."""
        return self.network.vocab_size

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return self.network.hidden_size

    @property
    def max_position_embeddings(self) -> int:
        """Longest sequence in tokens."""
        return self.network.max_position_embeddings

    @property
    def type_vocab_size(self) -> int:
        """Kinds of segments: none."""
        return 0

    @property
    def most_tokens(self) -> int:
        """The longest text in tokens."""
        return self.network.max_position_embeddings

    def with_dropout(self, rate: float) -> "RotaryEncoderConfig":
        """The same with another dropout while training, in [0, 1)."""
        return dataclasses.replace(self, network=dataclasses.replace(self.network, dropout=rate))


class RotaryLayers(KerasParts):
    """The layers of an encoder, with fresh weights; the same methods as `bert.BertLayers`."""

    def __init__(self, config: RotaryEncoderConfig, generation: str) -> None:
        super().__init__(config.network, generation)
        self._encoder = config

    def encode(self, ids: Any, mask: Any, types: Any) -> Any:
        """(batch, length) int32 ids and mask -> (batch, length, hidden_size)."""
        return self.hidden(ids, mask)

    def table(self, ids: Any, name: str, rows: int) -> Any:
        found = super().table(ids, name, rows)
        return self.norm(found, "embeddings_norm") if self._encoder.embedding_norm else found

    def norm(self, x: Any, name: str) -> Any:
        if name == "layer_0_attention_norm" and not self._encoder.first_norm:
            return x
        if self.config.norm == "rms" or self._encoder.norm_bias:
            return super().norm(x, name)
        return self._layers.LayerNormalization(epsilon=self.config.norm_eps, center=False, name=name)(x)

    def reaches(self, behind: Any, window: int | None) -> Any:
        # The square, since a model with an absolute value would be one more operation to know.
        limit = float(self._encoder.most_tokens if window is None else window) ** 2
        return self.ops.cast(behind * behind < limit, "float32")

    def dense(self, x: Any, units: int, name: str, activation: str | None = None, bias: bool = True) -> Any:
        """(..., inputs) -> (..., units)."""
        return self.linear(x, Linear(name, units, bias, activation=activation))

    def pooler(self, x: Any) -> Any:
        """What a classifier looks at, from a vector of each text."""
        if not self._encoder.prediction_head:
            raise InputError("this encoder has no pooler; use pooling 'mean' or 'cls'")
        return self.before_logits(x)

    def before_logits(self, x: Any) -> Any:
        """The vectors of tokens as a head takes them."""
        if not self._encoder.prediction_head:
            return x
        return self.norm(self.dense(x, self.config.hidden_size, "head_dense", "gelu", bias=False), "head_norm")

    def words_of(self, x: Any, ids: Any) -> Any:
        """Logits of the words at each place, from the token table."""
        return self.times_table(self.before_logits(x), ids)
