"""The network of an encoder-decoder, described once.

`models.seq2seq` makes Keras layers of it, which recompute every token; `decoding.seq2seq_step` computes a source
once, and targets over a cache. What differs is how a layer is called, not which layers there are.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

from tfopt.decoding.network import Linear, feed_forward
from tfopt.decoding.seq2seq_config import Seq2SeqConfig

Kind = Literal["encoder", "decoder", "cross"]


class Place(NamedTuple):
    """One attention.

    Attributes:
        kind: within the source, within the target, or of the target to the source.
        layer: its number.
    """

    kind: Kind
    layer: int


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

    def waves(self, positions: Any) -> Any:
        """(rows, tokens) -> (rows, tokens, hidden_size): sines, then cosines."""

    def attend(self, query: Any, key: Any, value: Any, place: Place) -> Any:
        """Projections of (batch, tokens, heads * head_dim) -> what each token takes from those it sees.

        Keys and values of `place.kind` "cross" are whatever the caller of `decoded` gives.
        """

    def dropout(self, x: Any) -> Any:
        """What training leaves out at random."""


def encoded(config: Seq2SeqConfig, parts: Parts, ids: Any, positions: Any) -> Any:
    """Hidden states of a source.

    Args:
        config: shape of the model.
        parts: how its layers are called.
        ids: (batch, tokens) int32.
        positions: (batch or 1, tokens) int32.

    Returns:
        (batch, tokens, hidden_size).
    """
    x = _embedded(config, parts, ids, positions=positions)
    for layer in range(config.encoder_layers):
        name = f"encoder_{layer}"
        within = partial(_within, config, parts, place=Place("encoder", layer))
        x = _residual(config, parts, x, name=f"{name}_attention", inner=within)
        inner = partial(feed_forward, config, parts, name=name, bias=config.bias)
        x = _residual(config, parts, x, name=f"{name}_mlp", inner=inner)
    return parts.dropout(parts.norm(x, "encoder_norm")) if config.norm_first else x


def decoded(config: Seq2SeqConfig, parts: Parts, ids: Any, positions: Any, crossed: Callable[[int], Any]) -> Any:
    """Hidden states of a target, as logits are made of them.

    Args:
        config: shape of the model.
        parts: how its layers are called.
        ids: (batch, tokens) int32.
        positions: (batch or 1, tokens) int32.
        crossed: layer -> keys and values of the source.

    Returns:
        (batch, tokens, hidden_size).
    """
    x = _embedded(config, parts, ids, positions=positions)
    for layer in range(config.decoder_layers):
        name = f"decoder_{layer}"
        within = partial(_within, config, parts, place=Place("decoder", layer))
        x = _residual(config, parts, x, name=f"{name}_attention", inner=within)
        across = partial(_across, config, parts, crossed=crossed, place=Place("cross", layer))
        x = _residual(config, parts, x, name=f"{name}_cross", inner=across)
        inner = partial(feed_forward, config, parts, name=name, bias=config.bias)
        x = _residual(config, parts, x, name=f"{name}_mlp", inner=inner)
    if config.norm_first:
        x = parts.dropout(parts.norm(x, "decoder_norm"))
    return x if config.logit_scale == 1.0 else parts.scaled(x, config.logit_scale)


def keys_and_values(config: Seq2SeqConfig, parts: Parts, x: Any, name: str) -> tuple[Any, Any]:
    """The projections of an attention that others look at."""
    units = config.num_attention_heads * config.head_size
    key, value = (parts.linear(x, Linear(f"{name}_{part}", units, config.bias)) for part in ("key", "value"))
    return key, value


def _embedded(config: Seq2SeqConfig, parts: Parts, ids: Any, positions: Any) -> Any:
    x = parts.table(ids, "token_embeddings", config.vocab_size)
    if config.embedding_scale != 1.0:
        x = parts.scaled(x, config.embedding_scale)
    if config.positions == "sinusoidal":
        x = x + parts.waves(positions)
    return parts.dropout(x)


def _residual(config: Seq2SeqConfig, parts: Parts, x: Any, name: str, inner: Callable[[Any], Any]) -> Any:
    if config.norm_first:
        return x + parts.dropout(inner(parts.norm(x, f"{name}_norm")))
    return parts.norm(x + parts.dropout(inner(x)), f"{name}_norm")


def _within(config: Seq2SeqConfig, parts: Parts, x: Any, place: Place) -> Any:
    name = f"{place.kind}_{place.layer}_attention"
    return _attention(config, parts, x, name, *keys_and_values(config, parts, x, name=name), place=place)


def _across(config: Seq2SeqConfig, parts: Parts, x: Any, crossed: Callable[[int], Any], place: Place) -> Any:
    return _attention(config, parts, x, f"decoder_{place.layer}_cross", *crossed(place.layer), place=place)


def _attention(
    config: Seq2SeqConfig, parts: Parts, x: Any, name: str, key: Any, value: Any, *, place: Place
) -> Any:
    query = parts.linear(x, Linear(f"{name}_query", config.num_attention_heads * config.head_size, config.bias))
    context = parts.attend(query, key, value, place)
    return parts.linear(context, Linear(f"{name}_output", config.hidden_size, config.bias))
