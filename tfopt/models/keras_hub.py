"""Causal language models of KerasHub, https://keras.io/keras_hub, read into the decoder of this library.

KerasHub itself is not imported: the model that is given brings its classes.
"""

import dataclasses
import importlib
import struct
from typing import Any

import numpy as np

from tfopt._keras import extras, keras_api
from tfopt.data.gguf_tokenizer import tokenizer_json
from tfopt.data.llama2c_tokenizer import BOS, EOS, UNKNOWN, Llama2cTokenizer
from tfopt.data.sentencepiece_file import parse_pieces
from tfopt.data.tokenizers import parse_tokenizer
from tfopt.errors import InputError
from tfopt.models.causal_lm import causal_lm
from tfopt.models.keras_hub_families import FAMILIES, value_of

_TRIED = (
    "Once upon a time, there was 1 girl.",
    "x  y\n\u00e9\u4e2d",
    "The quick brown fox",
)  # texts, split alike or not
_LEAST_PIECES = 3 + 256
_USER_DEFINED = 4
# How names of weights of a backbone begin.
_FIRST = (
    "token_embedding", "position_embedding", "transformer_layer_", "sequence_output_layernorm", "layer_norm",
    "decoder_block_", "final_normalization",
)  # fmt: skip
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
        value = value_of(family, theirs, np.asarray(stored[theirs], np.float32))
        ours[path].assign(value.reshape(ours[path].shape))
    start = bool(getattr(preprocessor, "add_start_token", False))
    pieces = _pieces(tokenizer) if start else None
    as_json = byte_pairs(tokenizer, start) or (_piece_json(tokenizer) if start and pieces is None else None)
    tokenizers = (as_json, pieces)
    for name, content in zip(extras.TOKENIZERS, tokenizers, strict=True):
        if content is not None:
            extras.keep(made, name, content)
    return made


def path_of(weight: Any, first: tuple[str, ...] = _FIRST) -> str:
    """Without the names of models and layers around what begins so."""
    parts = weight.path.split("/")
    at = next((i for i, part in enumerate(parts) if part.startswith(first)), 0)
    return "/".join(parts[at:])


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
    model = _sentencepiece(tokenizer)
    if model is None:
        return None
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


def _piece_json(tokenizer: Any) -> bytes | None:
    """The same as a `tokenizer.json`, whatever its special tokens are."""
    model = _sentencepiece(tokenizer)
    if model is None or model.unk_id() < 0 or model.bos_id() < 0:
        return None
    numbers = range(model.get_piece_size())
    said = {
        "model": "llama", "tokens": [model.id_to_piece(i) for i in numbers], "add_bos_token": True,
        "scores": [model.get_score(i) for i in numbers], "bos_token_id": model.bos_id(),
        "token_type": _types(model),
        "unknown_token_id": model.unk_id(), "add_space_prefix": model.encode_as_pieces("a")[0].startswith("\u2581"),
    }  # fmt: skip
    metadata = {f"tokenizer.ggml.{name}": value for name, value in said.items()}
    content = tokenizer_json(metadata, len(numbers), where="a tokenizer of KerasHub")
    if content is None:
        return None
    ours = parse_tokenizer(content.decode(), "a tokenizer of KerasHub")
    own = [f"a{said['tokens'][i]}b" for i in numbers if said["token_type"][i] == _USER_DEFINED][:8]
    same = all(ours.encode(text).ids == [model.bos_id(), *model.encode(text)] for text in (*_TRIED, *own))
    return content if same else None


def _types(model: Any) -> list[int]:
    """Of each piece, as the model's own file has them: what is user-defined is found in a text before it is cut."""
    return [one.type for one in parse_pieces(model.serialized_model_proto(), "a tokenizer of KerasHub").pieces]


def _sentencepiece(tokenizer: Any) -> Any:
    proto = getattr(tokenizer, "proto", None)
    if not isinstance(proto, bytes):
        return None
    # KerasHub reads its tokenizers with it.
    return importlib.import_module("sentencepiece").SentencePieceProcessor(model_proto=proto)
