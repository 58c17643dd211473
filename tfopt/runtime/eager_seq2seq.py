"""The reference for encoder-decoders: a Keras model's weights, one operation after the other."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt.decoding.seq2seq_decoder import Seq2SeqDecoder, Seq2SeqSession
from tfopt.decoding.seq2seq_step import advance, read_source
from tfopt.decoding.step import Cache, float_products
from tfopt.decoding.weights import seq2seq_config_of, weights_of


class EagerSeq2SeqDecoder(Seq2SeqDecoder):
    """A Keras encoder-decoder, run eagerly.

    Args:
        model: from `models.seq2seq` or `models.from_pretrained`, of either generation.
    """

    def __init__(self, model: Any) -> None:
        self.config = seq2seq_config_of(model)
        self.context = self.source_room = self.config.max_position_embeddings
        values = {path: tf.constant(value) for path, value in weights_of(model).items()}
        self.products = float_products(self.config, values)

    def open(self, pads: Sequence[int]) -> "EagerSeq2SeqSession":
        return EagerSeq2SeqSession(self, pads)


class EagerSeq2SeqSession(Seq2SeqSession):
    """Keys and values as arrays of as many slots as the context has."""

    _decoder: EagerSeq2SeqDecoder

    def __init__(self, decoder: EagerSeq2SeqDecoder, pads: Sequence[int]) -> None:
        super().__init__(decoder, pads)
        c = decoder.config
        shape = (len(pads), c.num_attention_heads, decoder.context, c.head_size)
        self._source: Any = None
        self._seen: Any = None
        self._caches = [
            Cache(np.zeros(shape, np.float32), np.zeros(shape, np.float32)) for _ in range(c.decoder_layers)
        ]

    def _read(self, ids: np.ndarray, mask: np.ndarray) -> None:
        self._seen = tf.constant(mask, tf.float32)
        self._source = read_source(self._decoder.config, self._decoder.products, tf.constant(ids), seen=self._seen)

    def _extend(self, ids: np.ndarray, every: bool) -> np.ndarray:
        now, end = self.length, self.length + ids.shape[1]
        past = [Cache(tf.constant(k[:, :, :now]), tf.constant(v[:, :, :now])) for k, v, _, _ in self._caches]
        hidden, new = advance(
            self._decoder.config, self._decoder.products, tf.constant(ids), start=tf.constant(now), caches=past,
            source=self._source, seen=self._seen,
        )  # fmt: skip
        for cache, (key, value) in zip(self._caches, new, strict=True):
            cache.key[:, :, now:end], cache.value[:, :, now:end] = key.numpy(), value.numpy()
        return np.asarray(self._decoder.products.logits(hidden if every else hidden[:, -1:]))

    @property
    def cache_bytes(self) -> int:
        source = sum(int(tf.size(part)) * 4 for pair in self._source or () for part in pair)
        return source + sum(cache.key.nbytes + cache.value.nbytes for cache in self._caches)

    def close(self) -> None:
        self._caches.clear()
        self._source = None
