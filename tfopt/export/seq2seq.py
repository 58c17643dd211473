"""TFLite files of encoder-decoders: one signature reads a source, another adds a token to its target.

Keys and values that a target takes from its source come out of the first and go into the second; nothing computes
them again. `runtime.tflite_seq2seq` runs such files.
"""

from typing import Any

import tensorflow as tf

from tfopt.decoding.seq2seq_config import Seq2SeqConfig
from tfopt.decoding.seq2seq_step import advance, read_source
from tfopt.decoding.step import Cache, Products
from tfopt.decoding.weights import seq2seq_config_of
from tfopt.errors import InputError
from tfopt.export.decoder import converted
from tfopt.tflite.owners import Owners

DEFAULT_SOURCES = (32, 128, 512)


def check_sources(model: Any, lengths: Any) -> tuple[int, ...]:
    """The lengths of sources to export: those given, or a few up to what the model takes, at most 512.

    Raises:
        InputError: a number below 1 or above that.
    """
    most = seq2seq_config_of(model).max_position_embeddings
    if lengths is None:
        return (*(n for n in DEFAULT_SOURCES if n < most), *([most] if most <= DEFAULT_SOURCES[-1] else []))
    chosen = tuple(sorted({int(n) for n in lengths}))
    if not chosen or chosen[0] < 1 or chosen[-1] > most:
        raise InputError(f"lengths of a source must be in [1, {most}] (what the model takes), got {list(lengths)}")
    return chosen


def convert_seq2seq(model: Any, sources: tuple[int, ...], *, fold: bool, owners: Owners) -> bytes:
    """A float file that generates; `decoder.finished` makes it whole.

    Args:
        model: an encoder-decoder.
        sources: lengths of a source, each with signatures of its own; targets have as much room as the longest.
        fold: whether norms may be folded into the weights behind them.
        owners: scopes in which layers are traced.

    Raises:
        WorkFailedError: the converter gave up.
    """

    def functions(config: Seq2SeqConfig, products: Products) -> dict[str, Any]:
        found = {}
        for size in sources:
            found[f"read_{size}"] = _read(config, products, size)
            found[f"decode_{size}"] = _decode(config, products, size, slots=sources[-1])
        return found

    return converted(model, functions, fold=fold, owners=owners)


def _seen(count: tf.Tensor, size: int) -> tf.Tensor:
    return tf.cast(tf.range(size)[None, :] < count[:, None], tf.float32)


def _read(config: Seq2SeqConfig, products: Products, size: int) -> Any:
    def run(ids: tf.Tensor, count: tf.Tensor) -> dict[str, tf.Tensor]:
        pairs = read_source(config, products, tf.reshape(ids, [1, size]), seen=_seen(count, size))
        return {
            "cross_keys": tf.reshape(tf.concat([key for key, _ in pairs], 0), [-1]),
            "cross_values": tf.reshape(tf.concat([value for _, value in pairs], 0), [-1]),
        }

    return tf.function(run).get_concrete_function(
        ids=tf.TensorSpec([size], tf.int32, "ids"), count=tf.TensorSpec([1], tf.int32, "count")
    )


def _decode(config: Seq2SeqConfig, products: Products, size: int, slots: int) -> Any:
    layers, heads, width = range(config.decoder_layers), config.num_attention_heads, config.head_size

    def run(ids: tf.Tensor, start: tf.Tensor, count: tf.Tensor, **stored: tf.Tensor) -> dict[str, tf.Tensor]:
        def pair(name: str, layer: int, length: int) -> list[tf.Tensor]:
            shape = [1, heads, length, width]
            return [tf.reshape(stored[f"{name}{part}_{layer}"], shape) for part in ("key", "value")]

        hidden, grown = advance(
            config, products, tf.reshape(ids, [1, 1]), start=start[0],
            caches=[Cache(*pair("", layer, slots)) for layer in layers],
            source=[tuple(pair("cross_", layer, size)) for layer in layers], seen=_seen(count, size),
        )  # fmt: skip
        return {
            "keys": tf.reshape(tf.concat([key for key, _ in grown], 0), [-1]),
            "values": tf.reshape(tf.concat([value for _, value in grown], 0), [-1]),
            "logits": tf.reshape(products.logits(hidden), [-1]),
        }

    sizes = {"": heads * slots * width, "cross_": heads * size * width}
    names = [(f"{kind}{part}_{i}", n) for i in layers for kind, n in sizes.items() for part in ("key", "value")]
    specs = {name: tf.TensorSpec([n], tf.float32, name) for name, n in names}
    ones = {name: tf.TensorSpec([1], tf.int32, name) for name in ("ids", "start", "count")}
    return tf.function(run).get_concrete_function(**ones, **specs)
