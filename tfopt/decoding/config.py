"""The shape of a causal language model: GPT-2, LLaMA, Mistral and Qwen2 are points in one space."""

import dataclasses
import json
import math
from typing import Literal

import pydantic

from tfopt.errors import InputError, ModelFileError

Positions = Literal["rotary", "learned"]
Norm = Literal["rms", "layer"]
# Added to the scores of what is not to be seen; float16 holds it, and softmax gives exactly zero.
MASKED = -30_000.0
_LARGEST = 1 << 24  # rows, widths and layers beyond this are of no model
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")


@dataclasses.dataclass(frozen=True)
class CausalLMConfig:
    """Shape of a decoder; the defaults are those of a small LLaMA.

    Attributes:
        vocab_size: rows of the token table.
        hidden_size: width of the residual stream.
        num_hidden_layers: decoder layers.
        num_attention_heads: query heads of each attention.
        num_key_value_heads: key and value heads, a divisor of the query heads; by default as many.
        head_dim: width of a head, even with rotary positions; by default hidden_size / heads.
        intermediate_size: width of the feed-forward layers.
        max_position_embeddings: longest sequence in tokens.
        positions: "rotary" turns queries and keys (Su et al., https://arxiv.org/abs/2104.09864), "learned"
            adds a table.
        norm: "rms" (Zhang and Sennrich, https://arxiv.org/abs/1910.07467) or "layer".
        norm_eps: epsilon of the norms.
        hidden_act: activation of the feed-forward layers.
        gated: multiply the activation with a second projection (Shazeer, https://arxiv.org/abs/2002.05202).
        attention_bias: biases of the query, key and value projections.
        output_bias: biases of the attention's output projection and of the feed-forward layers.
        tie_word_embeddings: logits come from the token table instead of a matrix of their own.
        rope_theta: base of the rotary wavelengths.
        sliding_window: how many of the last tokens are seen, itself included; None sees all.
        dropout: after embeddings and blocks while training, in [0, 1).
        end_tokens: ids with which the model ends a text.

    Raises:
        InputError: a value outside its range.
    """

    vocab_size: int
    hidden_size: int = 288
    num_hidden_layers: int = 6
    num_attention_heads: int = 6
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int = 768
    max_position_embeddings: int = 256
    positions: Positions = "rotary"
    norm: Norm = "rms"
    norm_eps: float = 1e-5
    hidden_act: str = "silu"
    gated: bool = True
    attention_bias: bool = False
    output_bias: bool = False
    tie_word_embeddings: bool = True
    rope_theta: float = 10000.0
    sliding_window: int | None = None
    dropout: float = 0.0
    end_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.num_key_value_heads is None:
            object.__setattr__(self, "num_key_value_heads", self.num_attention_heads)
        object.__setattr__(self, "end_tokens", tuple(self.end_tokens))
        counts = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                  "intermediate_size", "max_position_embeddings")  # fmt: skip
        for name in counts:
            if not 1 <= getattr(self, name) <= _LARGEST:
                raise InputError(f"{name} must be from 1 to {_LARGEST:,}, got {getattr(self, name)}")
        if self.head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                raise InputError(
                    f"hidden_size must be a multiple of num_attention_heads, got {self.hidden_size} "
                    f"and {self.num_attention_heads}"
                )
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        self._check_attention()
        for name, known in (("positions", ("rotary", "learned")), ("norm", ("rms", "layer")),
                            ("hidden_act", ACTIVATIONS)):  # fmt: skip
            if getattr(self, name) not in known:
                raise InputError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name in ("norm_eps", "rope_theta"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} must be above 0 and finite, got {getattr(self, name)}")
        if not 0.0 <= self.dropout < 1.0:
            raise InputError(f"dropout must be in [0, 1), got {self.dropout}")

    def _check_attention(self) -> None:
        if self.num_attention_heads % self.key_value_heads:
            raise InputError(
                f"num_attention_heads must be a multiple of num_key_value_heads, got {self.num_attention_heads} "
                f"and {self.num_key_value_heads}"
            )
        if self.positions == "rotary" and self.head_size % 2:
            raise InputError(f"head_dim must be even with rotary positions, got {self.head_dim}")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise InputError(f"sliding_window must be 1 or more, got {self.sliding_window}")

    @property
    def head_size(self) -> int:
        """Width of a head."""
        assert self.head_dim is not None
        return self.head_dim

    @property
    def key_value_heads(self) -> int:
        """Number of key and value heads."""
        assert self.num_key_value_heads is not None
        return self.num_key_value_heads

    def to_json(self) -> bytes:
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def from_json(cls, content: bytes) -> "CausalLMConfig":
        """Reads what `to_json` wrote.

        Raises:
            ModelFileError: it is something else.
        """
        try:
            return pydantic.TypeAdapter(cls).validate_json(content, strict=True)
        except pydantic.ValidationError as error:
            raise ModelFileError(f"not the shape of a causal language model: {error}") from error
