"""TFLite files of causal language models: signatures that take a cache of keys and values.

What `decoding.step` computes is traced once per signature over shared weights; `decoding.signatures` has the
names. The shape of the model and its tokenizer travel inside the file.
"""

import tempfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfopt.decoding.config import CausalLMConfig
from tfopt.decoding.seq2seq_config import Seq2SeqConfig
from tfopt.decoding.signatures import DecoderSignature, plan_signatures
from tfopt.decoding.step import Cache, Products, float_products, forward
from tfopt.decoding.weights import config_of, is_seq2seq, seq2seq_config_of, weights_of
from tfopt.errors import InputError
from tfopt.export.convert import convert_saved_model
from tfopt.export.job import Job
from tfopt.export.said import IDS
from tfopt.runtime.eager_decoder import EagerDecoder
from tfopt.tflite import flatbuffer as fb
from tfopt.tflite.float16 import narrow_floats
from tfopt.tflite.owners import Owners
from tfopt.tflite.ranges import strip_ranges

# Every step reads a whole cache: the fewer slots beyond the text, the better.
DEFAULT_SLOTS, PREFILL, VERIFY = (128, 256, 512, 1024, 2048, 4096), (16, 128), 8
# How many channels are computed by themselves, and how many times as far as half of all they must reach.
_MOST_FAR, _FAR = 8, 3.0
APART = "logits_apart"  # in the name of their weight


class Apart(NamedTuple):
    """Channels of the final hidden states that reach much further than the others.

    Attributes:
        channels: their numbers.
        columns: (channels, vocab_size) float32, what they are multiplied by.
    """

    channels: tuple[int, ...]
    columns: np.ndarray


def check_slots(context: int, slots: Any) -> tuple[int, ...]:
    """The cache lengths to export: those given, or a few up to the context of the model, at most 4096.

    Raises:
        InputError: a number below 1 or above the context.
    """
    if slots is None:
        return (*(n for n in DEFAULT_SLOTS if n < context), *([context] if context <= DEFAULT_SLOTS[-1] else []))
    chosen = tuple(sorted({int(n) for n in slots}))
    if not chosen or chosen[0] < 1 or chosen[-1] > context:
        raise InputError(f"lengths of a cache must be in [1, {context}] (the model's context), got {list(slots)}")
    return chosen


def compared_length(slots: tuple[int, ...]) -> int:
    """Tokens of the texts that a file is compared on: past its shortest cache, unless that is long itself."""
    return min(slots[-1], slots[0] + 16) if slots[0] <= 256 else 64


def convert_decoder(
    model: Any,
    slots: tuple[int, ...],
    *,
    fold: bool,
    narrow_cache: bool,
    owners: Owners,
    apart: Apart | None = None,
) -> bytes:
    """A float file that generates, with signatures of `decoding.signatures`; `finished` makes it whole.

    Args:
        model: a causal language model.
        slots: cache lengths, each with signatures of its own.
        fold: whether norms may be folded into the weights behind them.
        narrow_cache: keys and values in int8, with a scale for each slot of each head.
        owners: scopes in which layers are traced.
        apart: channels whose share of the logits is computed by itself.

    Raises:
        WorkFailedError: the converter gave up.
    """
    return converted(
        model, lambda config, products: _sliced(config, products, slots, narrow=narrow_cache), fold=fold,
        owners=owners, apart=apart,
    )  # fmt: skip


Functions = Callable[[Any, Products], dict[str, Any]]  # of the shape of the model, and its weights


def converted(model: Any, functions: Functions, *, fold: bool, owners: Owners, apart: Apart | None = None) -> bytes:
    """A float file with signatures over the weights of a model that generates, each stored once.

    Args:
        model: a causal language model or an encoder-decoder.
        functions: concrete functions by the key of their signature.
        fold: whether norms may be folded into the weights behind them.
        owners: scopes in which layers are traced.
        apart: channels whose share of the logits is computed by itself.

    Raises:
        WorkFailedError: the converter gave up.
    """
    config = seq2seq_config_of(model) if is_seq2seq(model) else config_of(model)
    module = _Weights(config, weights_of(model), fold, owners=owners, apart=apart)
    signatures = functions(module.config, module.products)
    with tempfile.TemporaryDirectory(prefix="tfopt-") as folder:
        tf.saved_model.save(module, folder, signatures=signatures)
        return convert_saved_model(folder, list(signatures))


def finished(content: bytes, members: Mapping[str, bytes], float16: bool) -> bytes:
    """The file without barriers, with the members of a Keras archive; those of quantization are left out."""
    model = fb.read(content)
    strip_ranges(model)
    if float16:
        narrow_floats(model)
    for name, value in members.items():
        if not name.startswith("tfopt_quantization"):
            fb.add_metadata(model, name, value)
    return fb.write(model)


class _Weights(tf.Module):
    """The weights as variables, which signatures share."""

    def __init__(
        self, config: CausalLMConfig | Seq2SeqConfig, values: dict[str, np.ndarray], fold: bool, owners: Owners,
        apart: Apart | None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.config = config
        # A module tracks dictionaries whose keys are no paths.
        self.values = {_key(path): tf.Variable(value, trainable=False) for path, value in values.items()}
        products = float_products(config, {path: self.values[_key(path)] for path in values}, owners.scopes)
        if apart is not None:
            products = products._replace(logits=_split(products.logits, apart))
        elif config.tie_word_embeddings:
            # Else the converter would fold the last norm into a second copy of the table.
            products = products._replace(logits=_behind_barrier(products.logits))
        self.products = products if fold else _kept_apart(products)


def apart_for(job: Job) -> Apart | None:
    """The channels that a file's logits are computed apart for: where activations are smoothed, those left."""
    if job.config is None or job.config.smooth is None or job.calibration is None:
        return None
    return far_channels(job.model, job.calibration[IDS])


def far_channels(model: Any, ids: np.ndarray) -> Apart | None:
    """The few channels of the final hidden states that reach many times as far as the others.

    One range for all channels of a token would leave the others few of 256 steps. LLM.int8() multiplies such
    channels in float, https://arxiv.org/abs/2208.07339.

    Args:
        model: a causal language model.
        ids: (texts, tokens) int32 to look at.

    Returns:
        None where no channel reaches far.
    """
    config = config_of(model)
    if config.logit_softcap is not None:
        return None  # which takes the sum
    products = EagerDecoder(model).products
    reach = np.zeros(config.hidden_size, np.float32)
    for row in ids:
        hidden, _ = forward(config, products, tf.constant(row[None]), start=tf.constant(0), pads=None, caches=[])
        reach = np.maximum(reach, np.abs(hidden.numpy()[0]).max(0))
    far = np.argsort(-reach)[:_MOST_FAR]
    far = np.sort(far[reach[far] > _FAR * np.median(reach)])
    if not len(far):
        return None
    tied, weights = config.tie_word_embeddings, weights_of(model)
    table = weights["token_embeddings/embeddings"].T if tied else weights["logits/kernel"]
    return Apart(tuple(int(i) for i in far), np.ascontiguousarray(table[far], np.float32))


def _sliced(config: CausalLMConfig, products: Products, slots: tuple[int, ...], narrow: bool) -> dict[str, Any]:
    signatures = plan_signatures(slots, PREFILL, VERIFY)
    return {s.key: sliced_function(config, lambda _: products, s, narrow=narrow) for s in signatures}


def sliced_function(
    c: CausalLMConfig,
    products_of: Callable[[Mapping[str, tf.Tensor]], Products],
    signature: DecoderSignature,
    narrow: bool,
    more: Mapping[str, tf.TensorSpec] | None = None,
) -> Any:
    """The concrete function of a signature.

    Args:
        c: shape of the model.
        products_of: inputs -> the weights.
        signature: which.
        narrow: keys and values in int8.
        more: inputs beside the tokens and the cache.
    """
    new, slots = signature.new, signature.slots
    layers = range(c.num_hidden_layers)
    rows = c.key_value_heads * slots
    shape = [1, c.key_value_heads, slots]

    def run(ids: tf.Tensor, start: tf.Tensor, **stored: tf.Tensor) -> dict[str, tf.Tensor]:
        products = products_of(stored)
        cached = {name: stored[name] for name in specs}
        whole = {n: tf.reshape(v, shape if "scale" in n else [*shape, c.head_size]) for n, v in cached.items()}
        parts = ("key", "value", "key_scale", "value_scale")
        caches = [Cache(*(whole.get(f"{part}_{i}") for part in parts)) for i in layers]
        hidden, grown = forward(c, products, tf.reshape(ids, [1, new]), start=start[0], pads=None, caches=caches)
        outputs = {
            "keys": tf.reshape(tf.concat([key for key, _ in grown], 0), [-1]),
            "values": tf.reshape(tf.concat([value for _, value in grown], 0), [-1]),
        }
        if signature.kind != "prefill":
            outputs["logits"] = tf.reshape(products.logits(hidden), [-1])
        return outputs

    kind = tf.int8 if narrow else tf.float32
    sizes = dict.fromkeys(("key", "value"), (rows * c.head_size, kind))
    if narrow:
        sizes |= {f"{part}_scale": (rows, tf.float32) for part in ("key", "value")}
    names = [(f"{part}_{i}", size, dtype) for i in layers for part, (size, dtype) in sizes.items()]
    specs = {name: tf.TensorSpec([size], dtype, name) for name, size, dtype in names}
    return tf.function(run).get_concrete_function(
        ids=tf.TensorSpec([new], tf.int32, "ids"),
        start=tf.TensorSpec([1], tf.int32, "start"),
        **specs,
        **(more or {}),
    )


def _key(path: str) -> str:
    return path.replace("/", ":")


def _kept_apart(products: Products) -> Products:
    def linear(x: tf.Tensor, name: str) -> tf.Tensor:
        return products.linear(_barrier(x), name)

    return products._replace(linear=linear, logits=_behind_barrier(products.logits))


def _behind_barrier(product: Callable[[tf.Tensor], tf.Tensor]) -> Callable[[tf.Tensor], tf.Tensor]:
    return lambda x: product(_barrier(x))


def _split(product: Callable[[tf.Tensor], tf.Tensor], apart: Apart) -> Callable[[tf.Tensor], tf.Tensor]:
    """Logits, to which some channels are added by a product of their own, in float."""

    def logits(hidden: tf.Tensor) -> tf.Tensor:
        mask = np.ones(hidden.shape[-1], np.float32)
        mask[list(apart.channels)] = 0
        with tf.name_scope(f"{APART}/"):
            own = tf.matmul(tf.gather(hidden, list(apart.channels), axis=-1), tf.constant(apart.columns))
        # Without the barrier, the mask would be multiplied into a second table.
        return product(_barrier(hidden * mask)) + own

    return logits


def _barrier(x: tf.Tensor) -> tf.Tensor:
    """What a converter folds nothing through; it is taken out of the file again."""
    return tf.quantization.fake_quant_with_min_max_args(x)
