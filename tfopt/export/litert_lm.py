"""`.litertlm` files: a language model with its tokenizer, chat template and limits, as LiteRT-LM runs it.

https://ai.google.dev/edge/litert-lm. The runtime is an extra; no file is given out that did not run in it.
"""

import importlib.util
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfopt._base.members import CHAT, TOKENIZER
from tfopt._keras import extras
from tfopt._keras.keras_io import Inputs
from tfopt._keras.sizes import Size
from tfopt.data.chat import ChatTemplate
from tfopt.data.llama2c_tokenizer import Llama2cTokenizer
from tfopt.decoding.config import CausalLMConfig
from tfopt.decoding.signatures import DECODE, IDS, LOGITS, MASK, POSITIONS, cache_names, prefill_key
from tfopt.decoding.step import Cache, Products
from tfopt.decoding.weights import config_of, is_causal_lm
from tfopt.decoding.whole_cache import forward_whole
from tfopt.errors import InputError, VerificationError
from tfopt.export.artifact import Check
from tfopt.export.decoder import PREFILL, apart_for, check_slots, converted, finished
from tfopt.export.integers import write_decoder
from tfopt.export.job import Job, Wanted, Written
from tfopt.export.litert_lm_check import check_in_litert_lm
from tfopt.export.litert_lm_words import Words
from tfopt.export.stored import check_stored
from tfopt.tflite.file import read_metadata, read_tflite
from tfopt.tflite.litert_lm_file import read_litert_lm, write_litert_lm
from tfopt.tflite.owners import Owners

# Every step reads the whole cache.
DEFAULT_SLOTS, COMPARED = 1024, 64


def lengths(model: Any, inputs: Inputs, wanted: Wanted, masks: Mapping[str, Any]) -> tuple[tuple[Size, ...], Size]:
    """That of the cache."""
    if not is_causal_lm(model):
        raise InputError(f"a .litertlm file holds a model that generates, and {model.name!r} does not: use .tflite")
    if importlib.util.find_spec("litert_lm") is None:
        raise InputError(
            "a .litertlm file is tried in LiteRT-LM before it is given out: pip install 'tfopt[litertlm]'"
        )
    if wanted.batch_size != 1 or wanted.cache != "float32":
        raise InputError(
            f"LiteRT-LM keeps one text at a time in float32, got batch_size={wanted.batch_size} and "
            f"cache={wanted.cache!r}"
        )
    context = config_of(model).max_position_embeddings
    slots = check_slots(context, [min(context, DEFAULT_SLOTS)] if wanted.lengths is None else wanted.lengths)
    if len(slots) != 1 or slots[0] < 8:
        raise InputError(f"a .litertlm file has one cache of 8 tokens or more, got lengths={list(slots)}")
    return slots, min(COMPARED, slots[0])


def write(job: Job, path: Path) -> Written:
    """Writes the file, and runs it in LiteRT-LM."""
    (slots,) = job.slots
    texts_alone = "chat" in job.wanted.accept
    words = _words(job.model, job.members, slots=slots, texts_alone=texts_alone)
    # The tokenizer has a section of its own.
    members = {n: v for n, v in extras.of(job.model).items() if n not in extras.TOKENIZERS}

    def converter(fold: bool, owners: Owners) -> bytes:
        content = converted(
            job.model, lambda config, products: _functions(config, products, slots), fold=fold, owners=owners,
            apart=apart_for(job),
        )  # fmt: skip
        return finished(content, members, float16=job.name == "float16")

    with tempfile.TemporaryDirectory(prefix="tfopt-") as folder:
        inner = Path(folder, "model.tflite")
        written = write_decoder(job, inner, converter)
        write_litert_lm(path, decoder=inner, tokenizer=words.content, metadata=words.metadata())
    checks = check_in_litert_lm(path, job, words)
    if texts_alone:
        checks.append(Check("chat", "no template", "a prompt as the template writes it", accepted=True))
    return Written(written.expected, (*written.checks, *checks), written.layers)


def check(path: Path, name: str | None, jit_compile: bool) -> list[Check]:
    """Of its TFLite file, what `check_stored` checks, and that every table is stored once.

    Raises:
        VerificationError: named "dtypes", "table_lookup", "state", "tables" or "metadata".
    """
    file = read_litert_lm(path)
    with tempfile.TemporaryDirectory(prefix="tfopt-") as folder:
        inner = file.decoder(Path(folder, "model.tflite"))
        checks = check_stored(inner, name)
        config = CausalLMConfig.from_json(read_metadata(inner)[extras.CONFIG])
        shape = (config.vocab_size, config.hidden_size)
        tables = sum(c.shape == shape for c in read_tflite(inner).constants)
    if tables > (1 if config.tie_word_embeddings else 2):
        raise VerificationError("tables", f"a table of {shape[0]:,} rows is stored {tables} times")
    said = file.metadata()
    if said.max_num_tokens < 1 or file.tokenizer() is None:
        raise VerificationError("metadata", "the file says no limit of tokens, or has no tokenizer")
    return [*checks, Check("metadata", f"{said.max_num_tokens} tokens", "limit and tokenizer")]


def _words(model: Any, members: Mapping[str, bytes], slots: int, texts_alone: bool) -> Words:
    """Tokenizer and template of a model, or the tokenizer that was given; no template for `texts_alone`."""
    found = {**extras.of(model), **members}
    config = config_of(model)
    content = found.get(TOKENIZER)
    if content is None:
        pieces = found.get(extras.TOKENIZERS[1])
        if pieces is None:
            raise InputError(
                f"LiteRT-LM takes texts, and model {model.name!r} has no tokenizer: give tokenizer=..."
            )
        content = Llama2cTokenizer.parse(pieces).to_json()
    has_chat = CHAT in found and not texts_alone
    chat = ChatTemplate.from_json(found[CHAT], f"model {model.name!r}") if has_chat else None
    return Words.of(content, chat, config, slots)


def _functions(c: CausalLMConfig, products: Products, slots: int) -> dict[str, Any]:
    sizes = sorted({min(size, slots) for size in PREFILL})
    found = {DECODE: _function(c, products, slots, new=1)}
    return found | {prefill_key(size): _function(c, products, slots, new=size) for size in sizes}


def _function(c: CausalLMConfig, products: Products, slots: int, new: int) -> Any:
    names = cache_names(c.num_hidden_layers)

    def run(**given: tf.Tensor) -> dict[str, tf.Tensor]:
        stored = [given[name] for name in names]
        caches = [Cache(key, value) for key, value in zip(stored[::2], stored[1::2], strict=True)]
        hidden, caches = forward_whole(
            c, products, given[IDS], positions=given[POSITIONS], mask=given[MASK], caches=caches
        )
        outputs = dict(zip(names, (part for cache in caches for part in (cache.key, cache.value)), strict=True))
        return outputs if new > 1 else {**outputs, LOGITS: products.logits(hidden)}

    shape = [1, c.key_value_heads, slots, c.head_size]
    specs = {name: tf.TensorSpec(shape, tf.float32, name) for name in names}
    return tf.function(run).get_concrete_function(**{
        IDS: tf.TensorSpec([1, new], tf.int32, IDS), POSITIONS: tf.TensorSpec([new], tf.int32, POSITIONS),
        MASK: tf.TensorSpec([1, 1, new, slots], tf.float32, MASK), **specs,
    })  # fmt: skip
