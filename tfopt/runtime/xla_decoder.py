"""Generates with XLA: one compiled program holds the whole loop, sampling included.

Weights may stay in 8 or 4 bits in memory; XLA widens them inside the product. They are kept with outputs first,
the layout in which it fuses the cast: the other one was five times slower than float.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.compiler.tf2xla.python.xla import dynamic_update_slice  # where Keras 3 takes it from, too

from tfopt.decoding.config import CausalLMConfig
from tfopt.decoding.decoder import Decoder, LoopSession
from tfopt.decoding.generate import Choices
from tfopt.decoding.sampling import SamplingConfig
from tfopt.decoding.seq2seq_config import Seq2SeqConfig
from tfopt.decoding.step import Cache, Products, capped, forward
from tfopt.decoding.weights import config_of, weights_of
from tfopt.errors import InputError
from tfopt.runtime.swapping import swap, variables

_LENGTHS = (1, 8, 32, 128, 512)  # of compiled programs; prompts are padded to one of them


class XlaDecoder(Decoder):
    """A Keras causal language model, compiled by XLA.

    Args:
        model: from `models.causal_lm` or `models.from_pretrained`, of either generation.
        bits: 8 or 4 bits for weights, rounded to nearest with a scale per output; None keeps them in float.
    """

    def __init__(self, model: Any, bits: int | None = None) -> None:
        check_bits(bits)
        self.config: CausalLMConfig = config_of(model)
        self.context = self.config.max_position_embeddings
        self.bits = bits
        self._loops: dict[SamplingConfig, Any] = {}
        self._weights = variables(stored_weights(weights_of(model), bits))
        self.products = narrow_products(self.config, self._weights, bits)

    @property
    def weight_bytes(self) -> int:
        """What the weights take in memory."""
        return sum(int(tf.size(w)) * w.dtype.size for w in self._weights.values())

    def swap(self, values: Mapping[str, np.ndarray]) -> None:
        swap(self._weights, stored_weights(values, self.bits))

    def open(self, pads: Sequence[int]) -> "XlaSession":
        return XlaSession(self, pads)

    @functools.cached_property
    def extend(self) -> Any:
        """(ids, start, pads, caches...) -> logits; writes the new keys and values into the caches."""
        return tf.function(self._extend, jit_compile=True)

    def _extend(self, ids: Any, start: Any, last: Any, pads: Any, keys: Any, values: Any, every: bool) -> tf.Tensor:
        hidden, new = forward(
            self.config, self.products, ids, start=start, pads=pads, caches=caches_of(keys, values)
        )
        store(keys, values, new, start=start)
        return self.products.logits(hidden if every else tf.gather(hidden, last[None], axis=1))

    def loop(self, config: SamplingConfig) -> Any:
        """The whole loop as one program, see `XlaSession.generate`; compiled once for each way to choose."""
        if config not in self._loops:
            self._loops[config] = tf.function(functools.partial(self._loop, config), jit_compile=True)
        return self._loops[config]

    def _loop(
        self, config: SamplingConfig, token: Any, alive: Any, start: Any, limit: Any, least: Any, ends: Any,
        said: Any, uniforms: Any, pads: Any, keys: Any, values: Any,
    ) -> Any:  # fmt: skip
        def body(step: Any, token: Any, alive: Any, said: Any, tokens: Any, *caches: Any) -> Any:
            held = [Cache(caches[2 * i], caches[2 * i + 1]) for i in range(self.config.num_hidden_layers)]
            hidden, new = forward(
                self.config, self.products, token[:, None], start=start + step, pads=pads, caches=held
            )
            logits = self.products.logits(hidden)[:, 0]
            stops = tf.reduce_any(tf.one_hot(ends, logits.shape[-1], True, False), 0)
            logits = tf.where((step < least) & stops[None], -np.inf, logits)
            chosen = choose(logits, said, tf.gather(uniforms, step, axis=1), config=config)
            alive &= ~tf.reduce_any(chosen[:, None] == ends[None], 1)
            if config.repetition_penalty != 1.0:
                said |= tf.one_hot(chosen, self.config.vocab_size, on_value=True, off_value=False)
            tokens = _update(tokens, tf.where(alive, chosen, -1)[:, None], [0, step])
            flat = [t for pair in zip(held, new, strict=True) for t in _grown(*pair, start + step)]
            return step + 1, chosen, alive, said, tokens, *flat

        def more(step: Any, token: Any, alive: Any, *_: Any) -> Any:
            return (step < limit) & tf.reduce_any(alive)

        first = [t for pair in zip(keys, values, strict=True) for t in (pair[0].read_value(), pair[1].read_value())]
        tokens = -tf.ones(uniforms.shape, tf.int32)
        state = (tf.constant(0), token, alive, said, tokens, *first)
        step, _, _, _, tokens, *grown = tf.while_loop(more, body, state)
        for i, (key, value) in enumerate(zip(keys, values, strict=True)):
            key.assign(grown[2 * i])
            value.assign(grown[2 * i + 1])
        return tokens, step


class XlaSession(LoopSession):
    """Keys and values as variables, which programs update where they lie."""

    _decoder: XlaDecoder

    def __init__(self, decoder: XlaDecoder, pads: Sequence[int]) -> None:
        super().__init__(decoder)
        c = decoder.config
        shape = [len(pads), c.key_value_heads, decoder.context, c.head_size]
        self._pads = tf.constant(pads, tf.int32)
        self._keys = [tf.Variable(tf.zeros(shape), trainable=False) for _ in range(c.num_hidden_layers)]
        self._values = [tf.Variable(tf.zeros(shape), trainable=False) for _ in range(c.num_hidden_layers)]

    def _extend(self, ids: np.ndarray, every: bool) -> np.ndarray:
        parts, at = [], self.length
        while ids.shape[1]:
            count = min(ids.shape[1], _LENGTHS[-1])
            size = next(n for n in _LENGTHS if n >= count)
            if at + size > self._decoder.context:  # no room for padding
                size = max(n for n in _LENGTHS if n <= min(count, self._decoder.context - at))
                count = min(count, size)
            padded = np.pad(ids[:, :count], [(0, 0), (0, size - count)])
            place = (tf.constant(at), tf.constant(count - 1), self._pads)
            logits = self._decoder.extend(tf.constant(padded), *place, self._keys, self._values, every)
            parts.append(np.asarray(logits)[:, : count if every else 1])
            ids, at = ids[:, count:], at + count
        return np.concatenate(parts, 1) if every else parts[-1]

    def generate(self, texts: Sequence[Choices], alive: Sequence[bool], count: int) -> np.ndarray:
        """Continues texts by one program from the first token to the last.

        Args:
            texts: their last token is not yet added to the session; all have one configuration.
            alive: which of them go on.
            count: most new tokens.

        Returns:
            (texts, up to count) int32; -1 from a text's end on.
        """
        config, count = texts[0].config, min(count, self._decoder.context - self.length)
        uniforms = np.zeros((len(texts), self._decoder.context), np.float32)
        if not config.greedy:
            uniforms[:, :count] = [[text.sampler.uniform() for _ in range(count)] for text in texts]
        sampling = SamplingConfig(**{f.name: getattr(config, f.name) for f in dataclasses.fields(SamplingConfig)})
        ends, held_back = list(config.stop_tokens or ()) or [-2], config.min_tokens - max(t.new for t in texts)
        found, steps = self._decoder.loop(dataclasses.replace(sampling, seed=0))(
            tf.constant([text.tokens[-1] for text in texts], tf.int32), tf.constant(list(alive)),
            tf.constant(self.length), tf.constant(count), tf.constant(held_back), tf.constant(ends, tf.int32),
            tf.constant(np.stack([text.said for text in texts])), tf.constant(uniforms), self._pads, self._keys,
            self._values,
        )  # fmt: skip
        self.length += int(steps)
        return np.asarray(found)[:, : int(steps)]

    @property
    def cache_bytes(self) -> int:
        return sum(int(tf.size(v)) * 4 for v in (*self._keys, *self._values))

    def close(self) -> None:
        self._keys, self._values = [], []


def check_bits(bits: int | None) -> None:
    """Raises InputError for bits that weights cannot be kept in."""
    if bits not in (None, 8, 4):
        raise InputError(f"bits must be 8, 4 or None, got {bits!r}")


def caches_of(keys: Any, values: Any) -> list[Cache]:
    """The caches of variables by layer."""
    return [Cache(k.read_value(), v.read_value()) for k, v in zip(keys, values, strict=True)]


def _update(whole: Any, part: Any, at: list[Any]) -> Any:
    """`whole` with `part` written at a place; XLA does it where `whole` lies."""
    return dynamic_update_slice(whole, part, tf.stack(at))


def _grown(cache: Cache, new: Any, start: Any) -> tuple[Any, Any]:
    zero = tf.constant(0)
    at = [zero, zero, start, zero]
    return _update(cache.key, new[0], at), _update(cache.value, new[1], at)


def store(keys: Any, values: Any, new: Any, start: Any) -> None:
    """Puts new keys and values into variables, from a slot on."""
    for key, value, pair in zip(keys, values, new, strict=True):
        grown = _grown(Cache(key.read_value(), value.read_value()), pair, start)
        key.assign(grown[0])
        value.assign(grown[1])


def stored_weights(values: Mapping[str, np.ndarray], bits: int | None) -> dict[str, np.ndarray]:
    """Weights as they lie in memory: matrices with outputs first, narrow ones with "<path>:scale".

    In 4 bits, each byte holds a weight of the first half of the inputs in its low half and one of the second half
    in its high half, so that both halves are products of their own and nothing has to be put in order.
    """
    stored = {}
    for path, value in values.items():
        if path.endswith("/kernel"):
            value = np.ascontiguousarray(value.T)
        is_matrix = path.endswith("/kernel") or path == "token_embeddings/embeddings"
        if bits is None or not is_matrix or (bits == 4 and value.shape[1] % 2):
            stored[path] = value
            continue
        largest = 2 ** (bits - 1) - 1
        scale = np.maximum(np.abs(value).max(1, keepdims=True) / largest, 1e-12).astype(np.float32)
        integers = np.clip(np.rint(value / scale), -largest, largest).astype(np.int8)
        if bits == 4:
            half = integers.shape[1] // 2
            integers = ((integers[:, :half] & 15) | (integers[:, half:] << 4)).astype(np.int8)
        stored[path], stored[f"{path}:scale"] = integers, scale[:, 0]
    return stored


def narrow_products(
    config: CausalLMConfig | Seq2SeqConfig, weights: Mapping[str, tf.Variable], bits: int | None
) -> Products:
    """Products with weights of `stored_weights`."""

    def halves(stored: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        low = tf.bitwise.right_shift(
            tf.bitwise.left_shift(stored, tf.constant(4, tf.int8)), tf.constant(4, tf.int8)
        )
        return low, tf.bitwise.right_shift(stored, tf.constant(4, tf.int8))

    def product(x: tf.Tensor, path: str) -> tf.Tensor:
        flat, stored = tf.reshape(x, [-1, x.shape[-1]]), weights[path]
        scale = weights.get(f"{path}:scale")
        if scale is None:
            y = tf.matmul(flat, stored, transpose_b=True)
        elif bits == 8:
            y = tf.matmul(flat, tf.cast(stored, tf.float32), transpose_b=True) * scale
        else:
            half = flat.shape[1] // 2
            parts = zip((flat[:, :half], flat[:, half:]), halves(stored), strict=True)
            first, second = (tf.matmul(a, tf.cast(b, tf.float32), transpose_b=True) for a, b in parts)
            y = (first + second) * scale
        return tf.reshape(y, [x.shape[0], x.shape[1], y.shape[-1]])

    def linear(x: tf.Tensor, name: str) -> tf.Tensor:
        if f"{name}_low/kernel" in weights:  # a matrix that was split into two
            x = product(x, f"{name}_low/kernel")
        y = product(x, f"{name}/kernel")
        return y + weights[f"{name}/bias"] if f"{name}/bias" in weights else y

    def lookup(ids: tf.Tensor, name: str) -> tf.Tensor:
        path = f"{name}/embeddings"
        rows, scale = tf.gather(weights[path], ids), weights.get(f"{path}:scale")
        if scale is None:
            return rows
        wide = tf.concat([tf.cast(half, tf.float32) for half in halves(rows)], -1) if bits == 4 else rows
        return tf.cast(wide, tf.float32) * tf.gather(scale, ids)[..., None]

    def logits(hidden: tf.Tensor) -> tf.Tensor:
        found = product(hidden, "token_embeddings/embeddings" if config.tie_word_embeddings else "logits/kernel")
        found = found + weights["logits_bias/beta"] if "logits_bias/beta" in weights else found
        return capped(found, config.logit_softcap)

    return Products(linear, lookup, logits, vector=lambda name: weights[name])


def choose(logits: tf.Tensor, said: tf.Tensor, uniform: tf.Tensor, config: SamplingConfig) -> tf.Tensor:
    """`sampling.Sampler.choose` for a batch, inside a program.

    Args:
        logits: (texts, vocab).
        said: (texts, vocab) bool.
        uniform: (texts,) numbers in [0, 1).
        config: how.
    """
    if config.repetition_penalty != 1.0:
        penalty = config.repetition_penalty
        logits = tf.where(said, tf.where(logits > 0, logits / penalty, logits * penalty), logits)
    if config.greedy:
        return tf.argmax(logits, -1, output_type=tf.int32)
    scaled = (logits - tf.reduce_max(logits, -1, keepdims=True)) / config.temperature
    vocab = logits.shape[-1]
    if config.top_k is not None and config.top_k < vocab:
        lowest = tf.math.top_k(scaled, config.top_k).values[:, -1:]
        scaled = tf.where(scaled >= lowest, scaled, -np.inf)
    chances = tf.nn.softmax(scaled)
    if config.top_p is not None and config.top_p < 1:
        ordered = tf.sort(chances, direction="DESCENDING")
        kept = tf.where(_running(ordered) - ordered < config.top_p, ordered, 1.0)
        chances = tf.where(chances >= tf.reduce_min(kept, -1, keepdims=True), chances, 0.0)
    edges = _running(chances)
    below = tf.reduce_sum(tf.cast(edges <= uniform[:, None] * edges[:, -1:], tf.int32), -1)
    last = vocab - 1 - tf.argmax(tf.reverse(chances, [1]) > 0, -1, output_type=tf.int32)
    return tf.minimum(below, last)


def _running(x: tf.Tensor) -> tf.Tensor:
    """Sums along the last axis, block by block: XLA sums every prefix anew, which is quadratic."""
    size = x.shape[-1]
    block = int(np.ceil(np.sqrt(size)))
    blocks = tf.reshape(tf.pad(x, [(0, 0), (0, block * block - size)]), [x.shape[0], block, block])
    before = tf.cumsum(tf.reduce_sum(blocks, -1), axis=-1, exclusive=True)
    return tf.reshape(tf.cumsum(blocks, axis=-1) + before[:, :, None], [x.shape[0], block * block])[:, :size]
