"""One pass of a causal language model that writes its keys and values into the caches itself, as LiteRT-LM has it.

Caches go in and come out whole; where a runtime binds both to the same memory, a decoding step writes one slot.
"""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla  # of the public operations, none becomes one in place

from tfopt.decoding.config import MASKED, CausalLMConfig
from tfopt.decoding.network import hidden_states
from tfopt.decoding.step import Cache, Pass, Products, capped, masked, rotation


def forward_whole(
    config: CausalLMConfig,
    products: Products,
    tokens: tf.Tensor,
    *,
    positions: tf.Tensor,
    mask: tf.Tensor,
    caches: Sequence[Cache],
) -> tuple[tf.Tensor, list[Cache]]:
    """Hidden states of new tokens, and the caches with them.

    Args:
        config: shape of the model.
        products: its weights.
        tokens: (1, new) int32; those beyond the text's end are padding.
        positions: (new,) int32, from the slot of the first token on; of padding, anything.
        mask: (1, 1, new, slots), 0 where a token sees a slot and very low elsewhere.
        caches: one per layer, of float32.

    Returns:
        Final hidden states (1, new, hidden_size), and the caches.
    """
    one = _WholePass(config, products, caches, positions=positions, mask=mask)
    inside = tf.minimum(positions[None], config.max_position_embeddings - 1)
    hidden = hidden_states(config, one, tokens, positions=inside)
    return hidden, one.filled


class _WholePass(Pass):
    """Tokens see the cache only, in which they already are.

    Attributes:
        filled: the caches so far, by layer.
    """

    def __init__(
        self,
        config: CausalLMConfig,
        products: Products,
        caches: Sequence[Cache],
        positions: tf.Tensor,
        mask: tf.Tensor,
    ) -> None:
        super().__init__(config, products, caches)
        self._start, self._new, self._slots = positions[0], int(positions.shape[0]), int(mask.shape[-1])
        layers = range(config.num_hidden_layers)
        for frequencies in filter(None, dict.fromkeys(map(config.frequencies_of, layers))):
            self.turns[frequencies] = rotation(frequencies, positions[None])
        windows = dict.fromkeys(map(config.window_of, layers))
        self._bias = {window: self._within(mask, positions, window)[:, :, None] for window in windows}
        self.filled: list[Cache] = []

    def _within(self, mask: tf.Tensor, positions: tf.Tensor, window: int | None) -> tf.Tensor:
        """The mask, without slots that a sliding window has left behind."""
        if window is None or window >= self._slots:
            return mask
        seen = tf.range(self._slots)[None, :] > positions[:, None] - window
        return mask + (1.0 - tf.cast(seen, tf.float32)) * MASKED

    def taken(
        self, query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, *, layer: int, shape: list[Any]
    ) -> tf.Tensor:
        stored = self._caches[layer]
        cache = Cache(self._put(stored.key, key), self._put(stored.value, value))
        self.filled.append(cache)
        scores = capped(tf.matmul(query, cache.key, transpose_b=True), self._config.attention_softcap)
        scores = masked(scores, self._bias[self._config.window_of(layer)], shape)
        return tf.matmul(tf.nn.softmax(scores), cache.value)

    def _put(self, cache: tf.Tensor, fresh: tf.Tensor) -> tf.Tensor:
        """The cache with (1, heads, new, head_dim) in its slots from the first token's on."""
        if self._new == 1:
            zero = tf.zeros([], tf.int32)
            place = tf.stack([zero, zero, self._start, zero])
            return xla.dynamic_update_slice(cache, fresh, place)
        # A slice that reaches over the end, as padding may, would be moved back onto what is there.
        place = tf.range(self._slots) - self._start
        inside = tf.logical_and(place >= 0, place < self._new)[None, None, :, None]
        return tf.where(inside, tf.gather(fresh, tf.clip_by_value(place, 0, self._new - 1), axis=2), cache)
