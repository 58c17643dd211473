"""An encoder-decoder on sources and on new tokens of targets, given the keys and values of those before.

As in `decoding.step`, one function serves every runtime, and caches are written by whoever owns them. Keys and
values that a target takes from its source are computed once, with the source.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt.decoding.config import MASKED
from tfopt.decoding.seq2seq_config import Seq2SeqConfig
from tfopt.decoding.seq2seq_network import Place, decoded, encoded, keys_and_values
from tfopt.decoding.step import Cache, Layers, Products

Pairs = list[tuple[tf.Tensor, tf.Tensor]]


def read_source(config: Seq2SeqConfig, products: Products, ids: tf.Tensor, seen: tf.Tensor) -> Pairs:
    """Keys and values of sources, by layer of the decoder.

    Args:
        config: shape of the model.
        products: its weights.
        ids: (batch, source) int32.
        seen: (batch or 1, source) float32, 1 on tokens and 0 on padding, at either end.

    Returns:
        By layer, keys and values, each (batch, heads, source, head_dim).
    """
    one = _Layers(config, products)
    count = ids.shape[1] or tf.shape(ids)[1]
    places = tf.range(count)
    one.hide(seen)
    if config.positions == "relative":
        behind = places[:, None] - places[None, :]
        one.biases["encoder"] += one.by_distance("encoder", behind)
    positions = tf.maximum(tf.cumsum(tf.cast(seen, tf.int32), axis=1) - 1, 0)
    known = encoded(config, one, ids, positions=positions)
    pairs = (keys_and_values(config, one, known, name=f"decoder_{i}_cross") for i in range(config.decoder_layers))
    return [(one.split(key), one.split(value)) for key, value in pairs]


def advance(
    config: Seq2SeqConfig,
    products: Products,
    ids: tf.Tensor,
    *,
    start: tf.Tensor,
    caches: Sequence[Cache],
    source: Sequence[tuple[tf.Tensor, tf.Tensor]],
    seen: tf.Tensor,
) -> tuple[tf.Tensor, Pairs]:
    """Hidden states of new tokens of targets.

    Args:
        config: shape of the model.
        products: its weights.
        ids: (batch, new) int32.
        start: scalar int32, the slot of the first new token.
        caches: one per layer, of float32.
        source: what `read_source` gave.
        seen: (batch or 1, source) float32, as there.

    Returns:
        Hidden states as logits are made of them (batch, new, hidden_size), and by layer the new keys and values,
        each (batch, heads, new, head_dim).
    """
    one = _Layers(config, products, caches)
    new, slots = ids.shape[1] or tf.shape(ids)[1], caches[0].key.shape[2]
    places, before = start + tf.range(new), tf.range(slots)
    one.hide(seen)
    # Slots of the cache from `start` on hold what is left of other texts.
    one.past = tf.where(before[None, :] < start + 0 * places[:, None], 0.0, MASKED)[None, None]
    one.biases["decoder"] = tf.where(places[None, :] <= places[:, None], 0.0, MASKED)[None, None]
    if config.positions == "relative":
        one.past += one.by_distance("decoder", places[:, None] - before[None, :])
        one.biases["decoder"] += one.by_distance("decoder", places[:, None] - places[None, :])
    hidden = decoded(config, one, ids, positions=places[None], crossed=lambda layer: source[layer])
    return hidden, one.grown


class _Layers(Layers):
    """The network out of its weights.

    Attributes:
        biases: by the kind of an attention, what is added to its scores: (batch or 1, heads or 1, new, keys).
        past: the same for the slots of the cache.
        grown: new keys and values by layer.
    """

    def __init__(self, config: Seq2SeqConfig, products: Products, caches: Sequence[Cache] = ()) -> None:
        super().__init__(config.norm, config.norm_eps, products)
        self._config, self._caches = config, caches
        self.biases: dict[str, tf.Tensor] = {}
        self.past: Any = None
        self.grown: Pairs = []

    def hide(self, seen: tf.Tensor) -> None:
        """Nobody sees a source's padding."""
        self.biases["encoder"] = self.biases["cross"] = ((1.0 - seen) * MASKED)[:, None, None, :]

    def waves(self, positions: tf.Tensor) -> tf.Tensor:
        angles = tf.cast(positions, tf.float32)[:, :, None] * tf.constant(self._config.frequencies())
        return tf.concat([tf.sin(angles), tf.cos(angles)], -1)

    def by_distance(self, kind: str, behind: tf.Tensor) -> tf.Tensor:
        """What a stack adds to scores: (queries, keys) -> (1, heads, queries, keys)."""
        c, both = self._config, kind == "encoder"
        kinds = np.searchsorted(c.thresholds(both), np.arange(c.relative_distance + 1), side="right")
        far = tf.minimum(tf.abs(behind) if both else tf.maximum(behind, 0), c.relative_distance)
        number = tf.gather(tf.constant(kinds, tf.int32), far)
        if both:
            number += tf.cast(behind < 0, tf.int32) * (c.relative_buckets // 2)
        return tf.transpose(tf.gather(self._products.vector(f"{kind}_distances/embeddings"), number), [2, 0, 1])[
            None
        ]

    def split(self, projected: tf.Tensor) -> tf.Tensor:
        """(batch, tokens, heads * head_dim) -> (batch, heads, tokens, head_dim)."""
        heads, size = self._config.num_attention_heads, self._config.head_size
        batch, tokens = (projected.shape[i] or tf.shape(projected)[i] for i in (0, 1))
        return tf.transpose(tf.reshape(projected, [batch, tokens, heads, size]), [0, 2, 1, 3])

    def attend(self, query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, place: Place) -> tf.Tensor:
        query = self.split(query) * self._config.score_scale
        if place.kind != "cross":
            key, value = self.split(key), self.split(value)
        scores = tf.matmul(query, key, transpose_b=True) + self.biases[place.kind]
        if place.kind == "decoder":
            self.grown.append((key, value))
            cache = self._caches[place.layer]
            before = tf.matmul(query, cache.key, transpose_b=True) + self.past
            slots = cache.key.shape[2]
            shares = tf.nn.softmax(tf.concat([before, scores], -1))
            context = tf.matmul(shares[..., :slots], cache.value) + tf.matmul(shares[..., slots:], value)
        else:
            context = tf.matmul(tf.nn.softmax(scores), value)
        batch, new = (query.shape[i] or tf.shape(query)[i] for i in (0, 2))
        size = self._config.num_attention_heads * self._config.head_size
        return tf.reshape(tf.transpose(context, [0, 2, 1, 3]), [batch, new, size])
