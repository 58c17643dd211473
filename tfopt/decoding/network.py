"""The network of a causal language model, described once.

`models.causal_lm` makes Keras layers of it, which recompute every token; `decoding.step` computes it on new tokens
over a cache. What differs is how a layer is called, not which layers there are.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

from tfopt.decoding.config import CausalLMConfig


class Linear(NamedTuple):
    """A matrix of the network.

    Attributes:
        name: of its layer, for example "layer_0_up".
        units: its outputs.
        bias: whether a vector is added.
        activation: of the outputs, a name of `config.ACTIVATIONS`, or None.
    """

    name: str
    units: int
    bias: bool
    activation: str | None = None


class Parts(Protocol):
    """How one way of computing calls the layers."""

    def table(self, ids: Any, name: str, rows: int) -> Any:
        """(batch, tokens) -> (batch, tokens, hidden_size)."""

    def linear(self, x: Any, layer: Linear) -> Any:
        """(batch, tokens, inputs) -> (batch, tokens, units)."""

    def norm(self, x: Any, name: str) -> Any:
        """Normed along the last axis."""

    def scaled(self, x: Any, factor: float) -> Any:
        """Times a number."""

    def attend(self, query: Any, key: Any, value: Any, layer: int) -> Any:
        """Projections of (batch, tokens, heads * head_dim) -> what each token takes from those it sees.

        With `query_key_norm`, queries and keys are normed by head, as "layer_0_attention_query_norm" and so on.
        """

    def rotate(self, x: Any, block: int) -> Any:
        """Each block of so many numbers along the last axis, times a Hadamard matrix."""

    def turn(self, x: Any, *, back: bool = False) -> Any:
        """The last axis times `numerics.hadamard.mixing` of its size, or times its transpose."""

    def dropout(self, x: Any) -> Any:
        """What training leaves out at random."""


def hidden_states(config: CausalLMConfig, parts: Parts, ids: Any, positions: Any) -> Any:
    """Final hidden states of tokens.

    Args:
        config: shape of the model.
        parts: how its layers are called.
        ids: (batch, tokens) int32.
        positions: (batch or 1, tokens) int32, below `max_position_embeddings`.

    Returns:
        (batch, tokens, hidden_size).
    """
    x = parts.table(ids, "token_embeddings", config.vocab_size)
    if config.embedding_scale != 1.0:
        x = parts.scaled(x, config.embedding_scale)
    if config.positions == "learned":
        x = x + parts.table(positions, "position_embeddings", config.max_position_embeddings)
    x = parts.dropout(x)
    turn = partial(parts.rotate, block=config.inner_rotation) if config.inner_rotation else None
    for index in range(config.num_hidden_layers):
        name = f"layer_{index}"
        taken = _attention(config, parts, parts.norm(x, f"{name}_attention_norm"), index=index)
        if config.post_norms:
            taken = parts.norm(taken, f"{name}_attention_post_norm")
        x = x + parts.dropout(taken)
        inner = parts.norm(x, f"{name}_mlp_norm")
        inner = feed_forward(config, parts, inner, name=name, bias=config.output_bias, turn=turn)
        if config.post_norms:
            inner = parts.norm(inner, f"{name}_mlp_post_norm")
        x = x + parts.dropout(inner)
    if not config.turned_stream:
        return parts.norm(x, "final_norm")
    return parts.turn(parts.norm(parts.turn(x, back=True), "final_norm"))


def _attention(config: CausalLMConfig, parts: Parts, x: Any, index: int) -> Any:
    name, size, bias = f"layer_{index}_attention", config.head_size, config.attention_bias
    query = parts.linear(x, Linear(f"{name}_query", config.num_attention_heads * size, bias))
    key = parts.linear(x, Linear(f"{name}_key", config.key_value_heads * size, bias))
    value = parts.linear(x, Linear(f"{name}_value", config.key_value_heads * size, bias))
    context = parts.attend(query, key, value, index)
    return parts.linear(context, Linear(f"{name}_output", config.hidden_size, config.output_bias))


class Sizes(Protocol):
    """What a feed-forward layer needs to know of a configuration."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def hidden_act(self) -> str: ...
    @property
    def gated(self) -> bool: ...


class HasLinear(Protocol):
    """What it calls."""

    def linear(self, x: Any, layer: Linear) -> Any: ...


def feed_forward(
    config: Sizes, parts: HasLinear, x: Any, *, name: str, bias: bool, turn: Callable[[Any], Any] | None = None
) -> Any:
    """The two or three matrices of a layer that work on each token by itself.

    Args:
        config: their sizes.
        parts: how they are called.
        x: (batch, tokens, hidden_size).
        name: of the layer.
        bias: whether they have biases.
        turn: what is done to the inner states before the last product.
    """
    units, act = config.intermediate_size, config.hidden_act
    if config.gated:
        gate = parts.linear(x, Linear(f"{name}_gate", units, bias, activation=act))
        inner = gate * parts.linear(x, Linear(f"{name}_up", units, bias))
    else:
        inner = parts.linear(x, Linear(f"{name}_up", units, bias, activation=act))
    inner = inner if turn is None else turn(inner)
    return parts.linear(inner, Linear(f"{name}_down", config.hidden_size, bias))
