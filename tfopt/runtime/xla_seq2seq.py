"""Encoder-decoders with XLA: one program reads a source, another adds tokens to its target."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt.decoding.seq2seq_decoder import Seq2SeqDecoder, Seq2SeqSession
from tfopt.decoding.seq2seq_step import advance, read_source
from tfopt.decoding.weights import seq2seq_config_of, weights_of
from tfopt.runtime.swapping import swap, variables
from tfopt.runtime.xla_decoder import caches_of, check_bits, narrow_products, store, stored_weights

_LENGTHS = (8, 32, 128, 512)  # of compiled programs; sources are padded to one of them
_NEW = (1, 8, 32)


class XlaSeq2SeqDecoder(Seq2SeqDecoder):
    """A Keras encoder-decoder, compiled by XLA.

    Args:
        model: from `models.seq2seq` or `models.from_pretrained`, of either generation.
        bits: 8 or 4 bits for weights, rounded to nearest with a scale per output; None keeps them in float.
    """

    def __init__(self, model: Any, bits: int | None = None) -> None:
        check_bits(bits)
        self.config = seq2seq_config_of(model)
        self.context = self.source_room = self.config.max_position_embeddings
        self.bits = bits
        self._weights = variables(stored_weights(weights_of(model), bits))
        self.products = narrow_products(self.config, self._weights, bits)

    def swap(self, values: Mapping[str, np.ndarray]) -> None:
        swap(self._weights, stored_weights(values, self.bits))

    def open(self, pads: Sequence[int]) -> "XlaSeq2SeqSession":
        return XlaSeq2SeqSession(self, pads)

    @functools.cached_property
    def read(self) -> Any:
        """(ids, mask) -> keys and values of the source."""
        return tf.function(
            lambda ids, seen: read_source(self.config, self.products, ids, seen=seen), jit_compile=True
        )

    @functools.cached_property
    def extend(self) -> Any:
        """(ids, start, place, mask, source, caches...) -> logits; writes new keys and values into the caches."""
        return tf.function(self._extend, jit_compile=True)

    def _extend(
        self, ids: Any, start: Any, last: Any, seen: Any, source: Any, keys: Any, values: Any, every: bool
    ) -> tf.Tensor:
        hidden, new = advance(
            self.config, self.products, ids, start=start, caches=caches_of(keys, values), source=source, seen=seen
        )
        store(keys, values, new, start=start)
        return self.products.logits(hidden if every else tf.gather(hidden, last[None], axis=1))


class XlaSeq2SeqSession(Seq2SeqSession):
    """Keys and values as variables, which programs update where they lie."""

    _decoder: XlaSeq2SeqDecoder

    def __init__(self, decoder: XlaSeq2SeqDecoder, pads: Sequence[int]) -> None:
        super().__init__(decoder, pads)
        c = decoder.config
        shape = [len(pads), c.num_attention_heads, decoder.context, c.head_size]
        self._keys = [tf.Variable(tf.zeros(shape), trainable=False) for _ in range(c.decoder_layers)]
        self._values = [tf.Variable(tf.zeros(shape), trainable=False) for _ in range(c.decoder_layers)]
        self._source: Any = None
        self._seen: Any = None

    def _read(self, ids: np.ndarray, mask: np.ndarray) -> None:
        count = ids.shape[1]
        size = min(next((n for n in _LENGTHS if n >= count), count), self._decoder.source_room)
        padding = [(0, 0), (0, size - count)]
        self._seen = tf.constant(np.pad(mask, padding), tf.float32)
        self._source = self._decoder.read(tf.constant(np.pad(ids, padding)), self._seen)

    def _extend(self, ids: np.ndarray, every: bool) -> np.ndarray:
        parts, at = [], self.length
        while ids.shape[1]:
            room = self._decoder.context - at
            count = min(ids.shape[1], _NEW[-1])
            size = next(n for n in _NEW if n >= count)
            if size > room:  # no room for padding
                size = max(n for n in _NEW if n <= room)
                count = min(count, size)
            padded = np.pad(ids[:, :count], [(0, 0), (0, size - count)])
            logits = self._decoder.extend(
                tf.constant(padded), tf.constant(at), tf.constant(count - 1), self._seen, self._source, self._keys,
                self._values, every,
            )  # fmt: skip
            parts.append(np.asarray(logits)[:, : count if every else 1])
            ids, at = ids[:, count:], at + count
        return np.concatenate(parts, 1) if every else parts[-1]

    @property
    def cache_bytes(self) -> int:
        held = [*self._keys, *self._values, *(part for pair in self._source or () for part in pair)]
        return sum(int(tf.size(tensor)) * 4 for tensor in held)

    def close(self) -> None:
        self._keys, self._values, self._source = [], [], None
