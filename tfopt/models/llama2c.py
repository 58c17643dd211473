"""Reads what llama2.c writes: a model file and its tokenizer.

Karpathy, llama2.c, https://github.com/karpathy/llama2.c: seven int32, then float32 tensors, no names.
"""

import dataclasses
import struct
from pathlib import Path
from typing import Any

import numpy as np

from tfopt._base.foreign import read_bytes, regular
from tfopt._base.formats import llama2c_models
from tfopt._base.limits import MAX_MEMBER_BYTES
from tfopt._keras import extras, keras_api
from tfopt.data.llama2c_tokenizer import Llama2cTokenizer
from tfopt.decoding.config import CausalLMConfig
from tfopt.errors import InputError, ModelFileError
from tfopt.models.causal_lm import causal_lm

_HEADER = struct.Struct("<7i")
_LARGEST, _MOST_LAYERS = 1 << 24, 1 << 10  # numbers beyond these are no header but something else


def read_llama2c(
    path: str | Path,
    *,
    generation: str = "tf_keras",
    tokenizer: str | Path | None = None,
    dropout: float | None = None,
) -> Any:
    """Builds the model of a llama2.c `.bin` file with its weights.

    Args:
        path: the file.
        generation: "tf_keras" or "keras".
        tokenizer: its tokenizer's file, which then stays with the model.
        dropout: while training, in [0, 1).

    Raises:
        MissingFileError: no such file.
        ModelFileError: it is something else, or its size is not what its header says.
    """
    path = regular(path, "model file", ModelFileError)
    config, sizes, own_output = _header(path)
    model = causal_lm(config if dropout is None else dataclasses.replace(config, dropout=dropout), generation)
    if tokenizer is not None:
        content = read_bytes(tokenizer, "tokenizer", most=MAX_MEMBER_BYTES, error=ModelFileError)
        size = Llama2cTokenizer.parse(content, str(tokenizer)).get_vocab_size()
        if size != config.vocab_size:
            raise ModelFileError(f"{tokenizer} has {size} tokens, the model {config.vocab_size}")
        extras.keep(model, extras.TOKENIZERS[1], content)
    stored = np.memmap(path, np.float32, "r", offset=_HEADER.size)
    variables = {w.path: w.variable for w in keras_api.weights(model)}
    at = 0
    for names, shape in sizes:
        for target in names:
            values = stored[at : at + int(np.prod(shape))].reshape(shape)
            at += values.size
            if target is not None:
                variables[target].assign(_ours(target, values, config))
    if own_output:
        variables["logits/kernel"].assign(stored[at:].reshape(config.vocab_size, config.hidden_size).T)
    return model


def llama2c_config(path: str | Path) -> CausalLMConfig:
    """The shape that a llama2.c file's header describes; raises as `read_llama2c`."""
    return _header(regular(path, "model file", ModelFileError))[0]


def _header(path: Path) -> tuple[CausalLMConfig, list[tuple[list[str | None], tuple[int, ...]]], bool]:
    with path.open("rb") as file:
        head = file.read(_HEADER.size)
    if len(head) < _HEADER.size:
        raise ModelFileError(f"{path} is no llama2.c model: it has {len(head)} bytes, its header alone takes 28")
    header = _HEADER.unpack(head)
    dim, hidden, layers, heads, groups, vocab, context = header
    try:
        if max(map(abs, header)) > _LARGEST or layers > _MOST_LAYERS:
            raise InputError("numbers beyond those of any model")
        config = CausalLMConfig(
            abs(vocab), dim, layers, num_attention_heads=heads, num_key_value_heads=groups,
            intermediate_size=hidden, max_position_embeddings=context, tie_word_embeddings=vocab > 0,
            end_tokens=(1, 2),
        )  # fmt: skip
    except InputError as error:
        raise ModelFileError(f"{path} is no llama2.c model: its header reads {header} ({error})") from error
    sizes = _tensors(config)
    expected = _HEADER.size + 4 * sum(len(names) * int(np.prod(shape)) for names, shape in sizes)
    expected += 0 if vocab > 0 else 4 * dim * abs(vocab)
    found = path.stat().st_size
    if found != expected:
        raise ModelFileError(f"{path} has {found:,} bytes, its header asks for {expected:,}")
    return config, sizes, vocab < 0


def _tensors(c: CausalLMConfig) -> list[tuple[list[str | None], tuple[int, ...]]]:
    """Names of ours and the stored shape, in the order of the file; None for what is not needed."""

    def each(name: str) -> list[str | None]:
        return [f"layer_{i}_{name}" for i in range(c.num_hidden_layers)]

    width, keys = c.num_attention_heads * c.head_size, c.key_value_heads * c.head_size
    rotary: list[str | None] = [None, None]
    return [
        (["token_embeddings/embeddings"], (c.vocab_size, c.hidden_size)),
        (each("attention_norm/gamma"), (c.hidden_size,)),
        (each("attention_query/kernel"), (width, c.hidden_size)),
        (each("attention_key/kernel"), (keys, c.hidden_size)),
        (each("attention_value/kernel"), (keys, c.hidden_size)),
        (each("attention_output/kernel"), (c.hidden_size, width)),
        (each("mlp_norm/gamma"), (c.hidden_size,)),
        (each("gate/kernel"), (c.intermediate_size, c.hidden_size)),
        (each("down/kernel"), (c.hidden_size, c.intermediate_size)),
        (each("up/kernel"), (c.intermediate_size, c.hidden_size)),
        (["final_norm/gamma"], (c.hidden_size,)),
        (rotary, (c.max_position_embeddings, c.head_size // 2)),
    ]


def _ours(target: str, values: np.ndarray, config: CausalLMConfig) -> np.ndarray:
    """The values in our layout: inputs first, and rotary pairs as halves of a head instead of side by side."""
    if target.endswith(("query/kernel", "key/kernel")):
        heads = values.shape[0] // config.head_size
        pairs = values.reshape(heads, config.head_size // 2, 2, config.hidden_size)
        values = pairs.transpose(0, 2, 1, 3).reshape(values.shape)
    return values.T if target.endswith("kernel") else values


def llama2c_files(folder: Path) -> tuple[Path, Path | None]:
    """The model of llama2.c in a folder, and its tokenizer if there is one.

    Raises:
        ModelFileError: there is no such model, or several.
    """
    models = llama2c_models(folder)
    if len(models) != 1:
        raise ModelFileError(
            f"{folder} is no model: expected a .keras or .h5 file, a folder with config.json, or one llama2.c .bin"
        )
    tokenizers = sorted(folder.glob("tok*.bin"))
    return models[0], tokenizers[0] if len(tokenizers) == 1 else None
