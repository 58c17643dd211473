"""Causal language models of KerasHub, https://keras.io/keras_hub, read into the decoder of this library.

KerasHub itself is not imported: the model that is given brings its classes.
"""

import dataclasses
import importlib
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tfopt._keras import extras, keras_api
from tfopt.data.llama2c_tokenizer import BOS, EOS, UNKNOWN, Llama2cTokenizer
from tfopt.decoding.config import CausalLMConfig
from tfopt.errors import InputError
from tfopt.models.causal_lm import causal_lm

_TRIED = (
    "Once upon a time, there was 1 girl.",
    "x  y\n\u00e9\u4e2d",
    "The quick brown fox",
)  # texts, split alike or not
_LEAST_PIECES = 3 + 256
# How names of weights of a backbone begin.
_FIRST = ("token_embedding", "position_embedding", "transformer_layer_", "sequence_output_layernorm", "layer_norm")
NAMES = {"token_ids": "input_ids", "padding_mask": "attention_mask"}  # of inputs, and those of the decoder
_CONTEXT = 1024  # slots, where neither model nor preprocessor says how many
_PACKAGE, _TASK, _BACKBONE = "keras_hub", "CausalLM", "Backbone"


def is_task(model: Any) -> bool:
    """Whether KerasHub built this model to generate."""
    return class_of(model).endswith(_TASK)


def is_known(model: Any) -> bool:
    """Whether it is of a family that the decoder knows: a `CausalLM` of KerasHub, or the backbone of one."""
    return class_of(getattr(model, "backbone", model)) in FAMILIES


def class_of(model: Any) -> str:
    """Name of KerasHub's class of a model, "" of others."""
    kind = next((c for c in type(model).__mro__ if c.__module__.startswith(f"{_PACKAGE}.")), None)
    return "" if kind is None else kind.__name__


def as_decoder(model: Any, *, context: int | None = None) -> Any:
    """A model of `models.causal_lm` with the same weights, where KerasHub built it; any other as it is.

    Args:
        model: a `CausalLM` of KerasHub, with its preprocessor's tokenizer if there is one, or a backbone.
        context: longest sequence in tokens; by default what the model or its preprocessor says, else 1,024.

    Raises:
        InputError: a family, or a setting of one, that the decoder does not know.
    """
    if not is_task(model) and class_of(model) not in FAMILIES:
        return model
    backbone = getattr(model, "backbone", model)
    family = type(backbone).__name__
    if family not in FAMILIES:
        known = ", ".join(name.removesuffix(_BACKBONE) for name in FAMILIES)
        raise InputError(
            f"{family.removesuffix(_BACKBONE)} of KerasHub is not known to the decoder; known: {known}"
        )
    read, entries = FAMILIES[family]
    preprocessor = getattr(model, "preprocessor", None)
    tokenizer = getattr(preprocessor, "tokenizer", None)
    settings = backbone.get_config()
    longest = context or getattr(preprocessor, "sequence_length", None) or _CONTEXT
    end = getattr(tokenizer, "end_token_id", None)
    config = read(settings, {w.path for w in backbone.weights}, longest)
    config = dataclasses.replace(config, end_tokens=() if end is None else (int(end),))
    made = causal_lm(config, "keras")
    stored = {path_of(w): w for w in backbone.weights}
    ours = {w.path: w.variable for w in keras_api.weights(made)}
    for path, theirs in entries(config):
        if theirs not in stored:
            raise InputError(f"{family} has no weight {theirs!r}: it is of a version that is not known here")
        ours[path].assign(np.asarray(stored[theirs], np.float32).reshape(ours[path].shape))
    start = bool(getattr(preprocessor, "add_start_token", False))
    tokenizers = (byte_pairs(tokenizer, start), _pieces(tokenizer) if start else None)
    for name, content in zip(extras.TOKENIZERS, tokenizers, strict=True):
        if content is not None:
            extras.keep(made, name, content)
    return made


def path_of(weight: Any, first: tuple[str, ...] = _FIRST) -> str:
    """Without the names of models and layers around what begins so."""
    parts = weight.path.split("/")
    at = next((i for i, part in enumerate(parts) if part.startswith(first)), 0)
    return "/".join(parts[at:])


_Read = Callable[[dict[str, Any], set[str], int], CausalLMConfig]
_Entries = Callable[[CausalLMConfig], Iterator[tuple[str, str]]]


def byte_pairs(tokenizer: Any, add_start: bool) -> bytes | None:
    """The `tokenizer.json` of KerasHub's byte pairs, which it runs with the package tokenizers itself."""
    inside: Any = getattr(tokenizer, "_tokenizer", None)
    if type(inside).__module__.partition(".")[0] != "tokenizers":
        return None
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    found = Tokenizer.from_str(inside.to_str())
    start = getattr(tokenizer, "start_token", None)
    if add_start and start is not None:
        special = [(start, int(tokenizer.start_token_id))]
        found.post_processor = TemplateProcessing(single=f"{start} $A", special_tokens=special)
    return str(found.to_str()).encode()


def _pieces(tokenizer: Any) -> bytes | None:
    """A SentencePiece model as llama2.c stores one; None for one that splits in another way."""
    proto = getattr(tokenizer, "proto", None)
    if not isinstance(proto, bytes):
        return None
    sentencepiece = importlib.import_module("sentencepiece")  # KerasHub reads its tokenizers with it
    model = sentencepiece.SentencePieceProcessor(model_proto=proto)
    pieces = [model.id_to_piece(i).replace("\u2581", " ").encode() for i in range(model.get_piece_size())]
    parts = [struct.pack("<i", max(map(len, pieces)))]
    for number, piece in enumerate(pieces):
        parts.append(struct.pack("<fi", model.get_score(number), len(piece)) + piece)
    content = b"".join(parts)
    if (model.unk_id(), model.bos_id(), model.eos_id()) != (UNKNOWN, BOS, EOS) or len(pieces) < _LEAST_PIECES:
        return None
    ours = Llama2cTokenizer.parse(content)
    same = all(ours.encode_ids(text)[1:] == model.encode(text) for text in _TRIED)
    return content if same else None


def _read_rotary(settings: dict[str, Any], paths: set[str], context: int) -> CausalLMConfig:
    """LLaMA, Mistral and Qwen2."""
    for name in ("rope_position_scaling_factor", "rope_scaling_factor", "rope_frequency_adjustment_factor"):
        if settings.get(name) not in (None, 1, 1.0):
            raise InputError(f"{name} {settings[name]} is not known to the decoder, whose positions are unscaled")
    window = settings.get("sliding_window")
    if settings.get("use_sliding_window_attention"):
        window = settings["sliding_window_size"]
    return CausalLMConfig(
        settings["vocabulary_size"], settings["hidden_dim"], settings["num_layers"],
        num_attention_heads=settings["num_query_heads"], num_key_value_heads=settings["num_key_value_heads"],
        head_dim=settings.get("head_dim"), intermediate_size=settings["intermediate_dim"],
        max_position_embeddings=context,
        norm_eps=settings["layer_norm_epsilon"], rope_theta=float(settings["rope_max_wavelength"]),
        attention_bias=any(path.endswith("query/bias") for path in paths), sliding_window=window,
        tie_word_embeddings=not any(path.endswith("reverse_embeddings") for path in paths),
        dropout=settings.get("dropout") or 0.0,
    )  # fmt: skip


def _read_gpt2(settings: dict[str, Any], paths: set[str], context: int) -> CausalLMConfig:
    return CausalLMConfig(
        settings["vocabulary_size"], settings["hidden_dim"], settings["num_layers"],
        num_attention_heads=settings["num_heads"], intermediate_size=settings["intermediate_dim"],
        max_position_embeddings=settings["max_sequence_length"],
        positions="learned", norm="layer", norm_eps=1e-5, hidden_act="gelu_tanh", gated=False, attention_bias=True,
        output_bias=True, dropout=settings["dropout"],
    )  # fmt: skip


def _attention(config: CausalLMConfig, number: int) -> Iterator[tuple[str, str]]:
    ours, theirs = f"layer_{number}", f"transformer_layer_{number}/self_attention"
    for part in ("query", "key", "value"):
        yield f"{ours}_attention_{part}/kernel", f"{theirs}/{part}/kernel"
        if config.attention_bias:
            yield f"{ours}_attention_{part}/bias", f"{theirs}/{part}/bias"
    yield f"{ours}_attention_output/kernel", f"{theirs}/attention_output/kernel"


def _rotary_entries(config: CausalLMConfig) -> Iterator[tuple[str, str]]:
    """Our path and theirs."""
    yield "token_embeddings/embeddings", "token_embedding/embeddings"
    for i in range(config.num_hidden_layers):
        ours, theirs = f"layer_{i}", f"transformer_layer_{i}"
        yield f"{ours}_attention_norm/gamma", f"{theirs}/self_attention_layernorm/scale"
        yield from _attention(config, i)
        yield f"{ours}_mlp_norm/gamma", f"{theirs}/feedforward_layernorm/scale"
        for name, other in (("gate", "gate"), ("up", "intermediate"), ("down", "output")):
            yield f"{ours}_{name}/kernel", f"{theirs}/feedforward_{other}_dense/kernel"
    yield "final_norm/gamma", "sequence_output_layernorm/scale"
    if not config.tie_word_embeddings:
        yield "logits/kernel", "token_embedding/reverse_embeddings"


def _gpt2_entries(config: CausalLMConfig) -> Iterator[tuple[str, str]]:
    yield "token_embeddings/embeddings", "token_embedding/embeddings"
    yield "position_embeddings/embeddings", "position_embedding/embeddings"
    for i in range(config.num_hidden_layers):
        ours, theirs = f"layer_{i}", f"transformer_layer_{i}"
        yield from _attention(config, i)
        yield f"{ours}_attention_output/bias", f"{theirs}/self_attention/attention_output/bias"
        for norm, other in (
            ("attention_norm", "self_attention_layer_norm"),
            ("mlp_norm", "feedforward_layer_norm"),
        ):
            yield from ((f"{ours}_{norm}/{kind}", f"{theirs}/{other}/{kind}") for kind in ("gamma", "beta"))
        for name, other in (("up", "intermediate"), ("down", "output")):
            stored = f"{theirs}/feedforward_{other}_dense"
            yield from ((f"{ours}_{name}/{kind}", f"{stored}/{kind}") for kind in ("kernel", "bias"))
    yield from ((f"final_norm/{kind}", f"layer_norm/{kind}") for kind in ("gamma", "beta"))


FAMILIES: dict[str, tuple[_Read, _Entries]] = {
    "GPT2Backbone": (_read_gpt2, _gpt2_entries),
    "LlamaBackbone": (_read_rotary, _rotary_entries),
    "Llama3Backbone": (_read_rotary, _rotary_entries),
    "MistralBackbone": (_read_rotary, _rotary_entries),
    "QwenBackbone": (_read_rotary, _rotary_entries),
}
