"""The layout that BERT and its like share."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from tfopt.errors import InputError
from tfopt.models.bert import BertConfig
from tfopt.models.families.base import Entry, dense_entries, known, norm_entries

ACTIVATIONS = {
    "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu", "silu": "silu",
    "tanh": "tanh", "swish": "silu",
}  # fmt: skip


def activation_of(config: BertConfig) -> str:
    """What public configurations call it."""
    return "gelu_new" if config.hidden_act == "gelu_tanh" else config.hidden_act


def read_config(raw: Mapping[str, Any]) -> BertConfig:
    """Our configuration from a `config.json`."""
    if raw.get("position_embedding_type", "absolute") != "absolute":
        raise InputError(f"only absolute positions, got {raw['position_embedding_type']!r}")
    names = {field.name for field in dataclasses.fields(BertConfig)} - {"position_offset"}
    found = {k: v for k, v in raw.items() if k in names}
    found["hidden_act"] = known(ACTIVATIONS, found.get("hidden_act", "gelu"))
    return BertConfig(**found)


def write_config(config: BertConfig) -> dict[str, Any]:
    """`config.json` of an encoder."""
    raw = {**dataclasses.asdict(config), "hidden_act": activation_of(config)}
    offset = raw.pop("position_offset")
    return {**raw, "model_type": "roberta", "pad_token_id": offset - 1} if offset else {**raw, "model_type": "bert"}


def entries(config: BertConfig) -> Iterator[Entry]:
    """The tensors of an encoder."""
    for table in ("word_embeddings", "token_type_embeddings", "position_embeddings"):
        yield Entry(f"embeddings.{table}.weight", (f"{table}/embeddings",))
    yield from norm_entries("embeddings.LayerNorm", "embeddings_norm")
    for i in range(config.num_hidden_layers):
        theirs, ours = f"encoder.layer.{i}", f"layer_{i}"
        for part in ("query", "key", "value"):
            yield from dense_entries(f"{theirs}.attention.self.{part}", f"{ours}_attention_{part}")
        yield from dense_entries(f"{theirs}.attention.output.dense", f"{ours}_attention_output")
        yield from norm_entries(f"{theirs}.attention.output.LayerNorm", f"{ours}_attention_norm")
        yield from dense_entries(f"{theirs}.intermediate.dense", f"{ours}_intermediate")
        yield from dense_entries(f"{theirs}.output.dense", f"{ours}_output")
        yield from norm_entries(f"{theirs}.output.LayerNorm", f"{ours}_output_norm")
