"""The shape of a causal language model: GPT-2, LLaMA, Qwen, Gemma and their like are points in one space."""

import dataclasses
import json
import math
from typing import Literal, TypeVar

import pydantic

from tfopt.errors import InputError, ModelFileError

Positions = Literal["rotary", "learned"]
Norm = Literal["rms", "layer"]
Shape = TypeVar("Shape")
# Added to the scores of what is not to be seen; float16 holds it, and softmax gives exactly zero.
MASKED = -30_000.0
_LARGEST = 1 << 24  # rows, widths and layers beyond this are of no model
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")
_BLOCKS = (0, *(1 << n for n in range(1, 11)))  # that inner states are turned in
_BEYOND = 1e18  # no number of a model is so large
_POSITIVE = ("local_rope_theta", "query_scale", "attention_softcap", "logit_softcap")


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
        full_layers: layers, from 0, that see all tokens though there is a window.
        unrotated_layers: layers whose queries and keys are not turned (Yang et al.,
            https://arxiv.org/abs/2501.18795).
        local_rope_theta: base of the wavelengths in layers with a window; None for `rope_theta`.
        rope_factors: what the frequencies in layers without a window are divided by, one for each pair of a head;
            () for none. Llama 3, https://arxiv.org/abs/2407.21783, and linear scaling are written so.
        query_key_norm: norms of the queries and keys of each head (Henry et al., https://arxiv.org/abs/2010.04245).
        post_norms: norms after the attention and the feed-forward layers too, as Gemma 2 has them,
            https://arxiv.org/abs/2408.00118.
        embedding_scale: what the rows of the token table are multiplied by.
        query_scale: what scores are multiplied by; None for 1 / sqrt(head_dim).
        attention_softcap: scores are bounded to plus and minus this by tanh; None for no bound.
        logit_softcap: logits likewise.
        inner_rotation: width of the blocks of inner states of the feed-forward layers that a Hadamard matrix turns
            before the last product, as `models.rotated` leaves them; 0 for none.
        turned_stream: the residual stream is turned by `numerics.hadamard.mixing`, as `models.rotated` leaves it:
            final states are turned back to be normed, and turned again for a tied table.
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
    full_layers: tuple[int, ...] = ()
    unrotated_layers: tuple[int, ...] = ()
    local_rope_theta: float | None = None
    rope_factors: tuple[float, ...] = ()
    query_key_norm: bool = False
    post_norms: bool = False
    embedding_scale: float = 1.0
    query_scale: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    inner_rotation: int = 0
    turned_stream: bool = False
    dropout: float = 0.0
    end_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.num_key_value_heads is None:
            object.__setattr__(self, "num_key_value_heads", self.num_attention_heads)
        for name in ("end_tokens", "full_layers", "unrotated_layers", "rope_factors"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
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
        for name in ("norm_eps", "rope_theta", "embedding_scale", *_POSITIVE):
            value = getattr(self, name)
            if not (name in _POSITIVE and value is None) and not 0.0 < value < _BEYOND:
                raise InputError(f"{name} must be above 0 and below {_BEYOND:g}, got {str(value)[:40]}")
        turned = self.inner_rotation
        if turned not in _BLOCKS or (turned and self.intermediate_size % turned):
            raise InputError(
                f"inner_rotation must be a power of two up to {_BLOCKS[-1]} that divides intermediate_size, got "
                f"{turned} and {self.intermediate_size}"
            )
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
        if self.rope_factors and len(self.rope_factors) != self.head_size // 2:
            raise InputError(
                f"rope_factors must be {self.head_size // 2} (half a head), got {len(self.rope_factors)}"
            )
        if not all(0.0 < factor < math.inf for factor in self.rope_factors):
            raise InputError("rope_factors must be above 0 and finite")
        for name in ("full_layers", "unrotated_layers"):
            wrong = [layer for layer in getattr(self, name) if not 0 <= layer < self.num_hidden_layers]
            if wrong:
                raise InputError(f"{name} must be in [0, {self.num_hidden_layers}), got {wrong[0]}")

    def window_of(self, layer: int) -> int | None:
        """How many of the last tokens a layer sees; None for all."""
        return None if layer in self.full_layers else self.sliding_window

    def frequencies_of(self, layer: int) -> tuple[float, ...] | None:
        """Radians that each pair of a head is turned by from one position to the next; None if it is not."""
        if self.positions != "rotary" or layer in self.unrotated_layers:
            return None
        half = self.head_size // 2
        if self.window_of(layer) is not None and self.local_rope_theta is not None:
            return tuple(self.local_rope_theta ** (-i / half) for i in range(half))
        factors = self.rope_factors or (1.0,) * half
        return tuple(self.rope_theta ** (-i / half) / factor for i, factor in enumerate(factors))

    @property
    def score_scale(self) -> float:
        """What scores are multiplied by."""
        return self.head_size**-0.5 if self.query_scale is None else self.query_scale

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
        return read_shape(cls, content, "a causal language model")


def read_shape(kind: type[Shape], content: bytes, what: str) -> Shape:
    """A configuration out of the JSON of its fields.

    Args:
        kind: its class.
        content: the JSON.
        what: it describes, for messages.

    Raises:
        ModelFileError: it is something else.
    """
    try:
        return pydantic.TypeAdapter(kind).validate_json(content, strict=True)
    except pydantic.ValidationError as error:
        raise ModelFileError(f"not the shape of {what}: {error}") from error
