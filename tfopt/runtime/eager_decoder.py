"""The reference: a Keras model's weights, one operation after the other, with keys and values kept."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt.decoding.config import CausalLMConfig
from tfopt.decoding.decoder import Decoder, Session
from tfopt.decoding.step import Cache, float_products, forward
from tfopt.decoding.weights import config_of, weights_of
from tfopt.runtime.swapping import swap, variables


class EagerDecoder(Decoder):
    """A Keras causal language model, run eagerly.

    Args:
        model: from `models.causal_lm` or `models.from_pretrained`, of either generation.
        context: most tokens of a text, for which memory is kept; by default as many as the model takes.
    """

    def __init__(self, model: Any, context: int | None = None) -> None:
        self.config: CausalLMConfig = config_of(model)
        self.context = min(context or self.config.max_position_embeddings, self.config.max_position_embeddings)
        self._weights = variables(weights_of(model))
        self.products = float_products(self.config, self._weights)

    def swap(self, values: Mapping[str, np.ndarray]) -> None:
        swap(self._weights, values)

    def open(self, pads: Sequence[int]) -> "EagerSession":
        return EagerSession(self, pads)


class EagerSession(Session):
    """Keys and values as arrays of as many slots as the context has."""

    _decoder: EagerDecoder

    def __init__(self, decoder: EagerDecoder, pads: Sequence[int]) -> None:
        super().__init__(decoder)
        c = decoder.config
        shape = (len(pads), c.key_value_heads, decoder.context, c.head_size)
        self._pads = tf.constant(pads, tf.int32) if any(pads) else None
        self._caches = [
            Cache(np.zeros(shape, np.float32), np.zeros(shape, np.float32)) for _ in range(c.num_hidden_layers)
        ]

    def _extend(self, ids: np.ndarray, every: bool) -> np.ndarray:
        now, end = self.length, self.length + ids.shape[1]
        past = [Cache(tf.constant(k[:, :, :now]), tf.constant(v[:, :, :now])) for k, v, _, _ in self._caches]
        hidden, new = forward(
            self._decoder.config,
            self._decoder.products,
            tf.constant(ids),
            start=tf.constant(now),
            pads=self._pads,
            caches=past,
        )
        for cache, (key, value) in zip(self._caches, new, strict=True):
            cache.key[:, :, now:end], cache.value[:, :, now:end] = key.numpy(), value.numpy()
        return np.asarray(self._decoder.products.logits(hidden if every else hidden[:, -1:]))

    @property
    def cache_bytes(self) -> int:
        return sum(cache.key.nbytes + cache.value.nbytes for cache in self._caches)

    def close(self) -> None:
        self._caches.clear()
