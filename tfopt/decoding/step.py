"""One pass of a causal language model over new tokens, given the keys and values of those before.

One function serves every runtime: run eagerly it is the reference, traced it becomes an XLA program or the
signatures of a TFLite file. It does not write the cache: it gives back the new keys and values, and whoever owns
the buffers puts them in place. No runtime then ever copies a cache.
"""

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfopt.decoding.config import MASKED, CausalLMConfig, Norm
from tfopt.decoding.network import Linear, hidden_states
from tfopt.decoding.seq2seq_config import Seq2SeqConfig
from tfopt.numerics.hadamard import factors, hadamard


class Products(NamedTuple):
    """How a runtime reads weights.

    Attributes:
        linear: (x, name of a layer) -> x times its kernel, plus its bias.
        lookup: (ids, name of a table) -> rows.
        logits: hidden states -> logits.
        vector: name of a weight -> its value.
    """

    linear: Callable[[tf.Tensor, str], tf.Tensor]
    lookup: Callable[[tf.Tensor, str], tf.Tensor]
    logits: Callable[[tf.Tensor], tf.Tensor]
    vector: Callable[[str], tf.Tensor]


class Cache(NamedTuple):
    """Keys and values of one layer, each of shape (batch, key/value heads, slots, head_dim).

    In int8, `key_scale` and `value_scale` of shape (batch, key/value heads, slots) belong to them.
    """

    key: Any
    value: Any
    key_scale: Any = None
    value_scale: Any = None


def forward(
    config: CausalLMConfig,
    products: Products,
    ids: tf.Tensor,
    start: tf.Tensor,
    pads: tf.Tensor | None,
    caches: Sequence[Cache],
) -> tuple[tf.Tensor, list[tuple[tf.Tensor, tf.Tensor]]]:
    """Hidden states of new tokens.

    Args:
        config: shape of the model.
        products: its weights.
        ids: (batch, new) int32.
        start: scalar int32, the slot of the first new token; the slots before hold the tokens before.
        pads: (batch,) int32, how many slots at the left of each row are padding; None for none.
        caches: one per layer.

    Returns:
        Final hidden states (batch, new, hidden_size), and by layer the new keys and values, each of shape
        (batch, key/value heads, new, head_dim).
    """
    new = ids.shape[1]
    offsets = tf.range(new) if new is None or new > 1 else tf.zeros([1], tf.int32)
    places = start + offsets  # (new,)
    positions = places[None] if pads is None else tf.maximum(places[None] - pads[:, None], 0)
    slots = caches[0].key.shape[2] if caches else 0
    one = _SlicedPass(config, products, caches, slots=slots)
    layers = range(config.num_hidden_layers)
    for frequencies in filter(None, dict.fromkeys(map(config.frequencies_of, layers))):
        one.turns[frequencies] = rotation(frequencies, positions)
    for window in dict.fromkeys(map(config.window_of, layers)):
        one.past[window] = _bias(places, tf.range(slots), pads, start=start, window=window) if slots else None
        one.fresh[window] = _bias(places, places, pads, start=None, window=window) if new != 1 else None
    # Padding at the right may reach beyond the table, which some runtimes refuse.
    inside = tf.minimum(positions, config.max_position_embeddings - 1)
    hidden = hidden_states(config, one, ids, positions=inside)
    return hidden, one.grown


class Layers:
    """The layers of a network, out of its weights; `norm` and `norm_eps` say how it norms."""

    def __init__(self, norm: Norm, norm_eps: float, products: Products) -> None:
        self._norm, self._epsilon, self._products = norm, norm_eps, products

    def table(self, ids: tf.Tensor, name: str, rows: int) -> tf.Tensor:
        return self._products.lookup(ids, name)

    def linear(self, x: tf.Tensor, layer: Linear) -> tf.Tensor:
        found = self._products.linear(x, layer.name)
        return found if layer.activation is None else activate(layer.activation, found)

    def norm(self, x: tf.Tensor, name: str) -> tf.Tensor:
        epsilon, gamma = self._epsilon, self._products.vector(f"{name}/gamma")
        if self._norm == "rms":
            return x * tf.math.rsqrt(tf.reduce_mean(x * x, -1, keepdims=True) + epsilon) * gamma
        centered = x - tf.reduce_mean(x, -1, keepdims=True)
        scaled = centered * tf.math.rsqrt(tf.reduce_mean(centered * centered, -1, keepdims=True) + epsilon)
        return scaled * gamma + self._products.vector(f"{name}/beta")

    def scaled(self, x: tf.Tensor, factor: float) -> tf.Tensor:
        return x * factor

    def rotate(self, x: tf.Tensor, block: int) -> tf.Tensor:
        return _like(_times(tf.reshape(x, [-1, block]), hadamard(block)), x)

    def turn(self, x: tf.Tensor, *, back: bool = False) -> tf.Tensor:
        outer, inner = factors(int(x.shape[-1]))
        turned = _times(tf.reshape(x, [-1, len(inner)]), inner)
        if len(outer) > 1:
            columns = tf.transpose(tf.reshape(turned, [-1, len(outer), len(inner)]), [0, 2, 1])
            columns = _times(tf.reshape(columns, [-1, len(outer)]), outer.T if back else outer)
            turned = tf.transpose(tf.reshape(columns, [-1, len(inner), len(outer)]), [0, 2, 1])
        return _like(turned, x)

    def dropout(self, x: tf.Tensor) -> tf.Tensor:
        return x


def _times(rows: tf.Tensor, matrix: np.ndarray) -> tf.Tensor:
    """Rows times a matrix of the network's shape, which is no weight and stays in float."""
    return tf.matmul(rows, tf.constant(matrix, tf.float32))


def _like(x: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
    return tf.reshape(x, tf.shape(other) if None in other.shape else other.shape)


class Pass(Layers, abc.ABC):
    """The network on new tokens; where keys and values lie is left to who attends.

    Attributes:
        turns: cosines and sines by the frequencies of a layer.
    """

    def __init__(self, config: CausalLMConfig, products: Products, caches: Sequence[Cache]) -> None:
        super().__init__(config.norm, config.norm_eps, products)
        self._config, self._caches = config, caches
        self.turns: dict[tuple[float, ...], tuple[tf.Tensor, tf.Tensor]] = {}

    def attend(self, query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, layer: int) -> tf.Tensor:
        c = self._config
        heads, groups, size = c.num_attention_heads, c.key_value_heads, c.head_size
        batch = query.shape[0] or tf.shape(query)[0]
        new = query.shape[1] or tf.shape(query)[1]
        query, key, value = (
            tf.reshape(x, [batch, new, count, size])
            for x, count in ((query, heads), (key, groups), (value, groups))
        )
        if c.query_key_norm:
            name = f"layer_{layer}_attention"
            query, key = self.norm(query, f"{name}_query_norm"), self.norm(key, f"{name}_key_norm")
        query, key, value = (tf.transpose(x, [0, 2, 1, 3]) for x in (query, key, value))
        frequencies = c.frequencies_of(layer)
        if frequencies is not None:
            query, key = (turned(x, *self.turns[frequencies]) for x in (query, key))
        # (batch, groups, heads per group * new, size): one product per group of heads that share keys
        query = tf.reshape(query * c.score_scale, [batch, groups, heads // groups * new, size])
        context = self.taken(query, key, value, layer=layer, shape=[batch, groups, heads // groups, new, -1])
        context = tf.transpose(tf.reshape(context, [batch, heads, new, size]), [0, 2, 1, 3])
        return tf.reshape(context, [batch, new, heads * size])

    @abc.abstractmethod
    def taken(
        self, query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, *, layer: int, shape: list[Any]
    ) -> tf.Tensor:
        """What new tokens take from each other and from those before.

        Args:
            query: (batch, groups, heads per group * new, head_dim), scaled.
            key: (batch, groups, new, head_dim).
            value: likewise.
            layer: its number.
            shape: that of scores by head: (batch, groups, heads per group, new, -1).

        Returns:
            As `query`.
        """


class _SlicedPass(Pass):
    """Keys and values of new tokens are given back, and put into the cache by whoever owns it.

    Attributes:
        slots: of each cache, 0 without one.
        past: by the window of a layer, what is added to the scores of the cache's slots; None without a cache.
        fresh: likewise, what is added to the scores among new tokens; None for a single one.
        grown: new keys and values by layer.
    """

    def __init__(self, config: CausalLMConfig, products: Products, caches: Sequence[Cache], slots: int) -> None:
        super().__init__(config, products, caches)
        self.slots = slots
        self.past: dict[int | None, Any] = {}
        self.fresh: dict[int | None, Any] = {}
        self.grown: list[tuple[tf.Tensor, tf.Tensor]] = []

    def taken(
        self, query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, *, layer: int, shape: list[Any]
    ) -> tf.Tensor:
        self.grown.append((key, value))
        window = self._config.window_of(layer)
        scores = capped(tf.matmul(query, key, transpose_b=True), self._config.attention_softcap)
        if self.fresh[window] is not None:
            scores = masked(scores, self.fresh[window], shape)
        past = (self._caches[layer], self.past[window]) if self.slots else None
        return self._context(query, scores, value, past, shape)

    def _context(self, query: tf.Tensor, scores: tf.Tensor, value: tf.Tensor, past: Any, shape: Any) -> tf.Tensor:
        """What tokens take from each other and from the cache; `scores` are those among the new tokens."""
        if past is None:
            return tf.matmul(tf.nn.softmax(scores), value)
        cache, bias = past
        before = tf.matmul(query, _widened(cache.key), transpose_b=True)
        if cache.key_scale is not None:
            before *= cache.key_scale[:, :, None, :]
        before = masked(capped(before, self._config.attention_softcap), bias, shape)
        probabilities = tf.nn.softmax(tf.concat([before, scores], -1))
        old = probabilities[..., : self.slots]
        if cache.value_scale is not None:
            old *= cache.value_scale[:, :, None, :]
        return tf.matmul(old, _widened(cache.value)) + tf.matmul(probabilities[..., self.slots :], value)


def rotation(frequencies: Sequence[float], positions: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Cosines and sines of shape (positions' rows, 1, new, head_dim / 2)."""
    angles = tf.cast(positions, tf.float32)[:, None, :, None] * tf.constant(frequencies, tf.float32)
    return tf.cos(angles), tf.sin(angles)


def _bias(places: Any, slots: Any, pads: Any, start: Any, window: int | None) -> tf.Tensor:
    """0 where a place sees a slot and `MASKED` elsewhere: (1 or batch, 1, 1, places, slots)."""
    # Slots of the cache from `start` on hold what is left of other texts.
    seen = slots[None, :] <= places[:, None] if start is None else slots[None, :] < start + 0 * places[:, None]
    if window is not None:
        seen &= slots[None, :] > places[:, None] - window
    seen = seen[None]
    if pads is not None:
        seen &= slots[None, None, :] >= pads[:, None, None]
    return ((1.0 - tf.cast(seen, tf.float32)) * MASKED)[:, None, None]


def masked(scores: tf.Tensor, bias: tf.Tensor, shape: list[Any]) -> tf.Tensor:
    """Scores with what is added to them, for every head: (1 or batch, 1, 1, new, keys)."""
    if bias.shape[3] == 1:  # one new token: its row of the mask holds for every head
        return scores + bias[:, :, 0]
    masked = tf.reshape(scores, shape) + bias
    return tf.reshape(masked, tf.shape(scores) if None in scores.shape else scores.shape)


def _widened(stored: tf.Tensor) -> tf.Tensor:
    return tf.cast(stored, tf.float32)


def turned(x: tf.Tensor, cosine: tf.Tensor, sine: tf.Tensor) -> tf.Tensor:
    """Rotary positions: pairs are the first and the second half of each head."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    return tf.concat([first * cosine - second * sine, second * cosine + first * sine], -1)


def capped(x: tf.Tensor, limit: float | None) -> tf.Tensor:
    """Bounded to plus and minus a limit by tanh."""
    return x if limit is None else tf.tanh(x * (1.0 / limit)) * limit


def activate(name: str, x: tf.Tensor) -> tf.Tensor:
    """The activation of that name."""
    if name == "silu":
        return x * tf.sigmoid(x)
    if name == "relu":
        return tf.nn.relu(x)
    return tf.nn.gelu(x, approximate=name == "gelu_tanh")


def float_products(
    config: CausalLMConfig | Seq2SeqConfig, weights: Mapping[str, Any], scopes: Mapping[str, str] | None = None
) -> Products:
    """Products with float weights by path, for example "layer_0_up/kernel" of shape (inputs, outputs).

    Args:
        config: shape of the model.
        weights: by path.
        scopes: path of a layer -> the name under which its product is traced.
    """

    def scope(layer: str) -> Any:
        return tf.name_scope(f"{(scopes or {}).get(layer, layer)}/")

    def product(x: tf.Tensor, layer: str, weight: str = "kernel", transposed: bool = False) -> tf.Tensor:
        with scope(layer):
            flat = tf.matmul(tf.reshape(x, [-1, x.shape[-1]]), weights[f"{layer}/{weight}"], transpose_b=transposed)
        return tf.reshape(flat, [x.shape[0] or tf.shape(x)[0], x.shape[1] or tf.shape(x)[1], flat.shape[-1]])

    def linear(x: tf.Tensor, name: str) -> tf.Tensor:
        if f"{name}_low/kernel" in weights:  # a matrix that was split into two
            x = product(x, f"{name}_low")
        y = product(x, name)
        return y + weights[f"{name}/bias"] if f"{name}/bias" in weights else y

    def lookup(ids: tf.Tensor, name: str) -> tf.Tensor:
        with scope(name):
            return tf.gather(weights[f"{name}/embeddings"], ids)

    def logits(hidden: tf.Tensor) -> tf.Tensor:
        if config.tie_word_embeddings:
            found = product(hidden, "token_embeddings", "embeddings", transposed=True)
        else:
            found = linear(hidden, "logits")
        found = found + weights["logits_bias/beta"] if "logits_bias/beta" in weights else found
        return capped(found, config.logit_softcap)

    return Products(linear, lookup, logits, vector=lambda name: weights[name])
