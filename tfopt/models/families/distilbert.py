"""DistilBERT: Sanh et al., https://arxiv.org/abs/1910.01108."""

from collections.abc import Iterator, Mapping
from typing import Any

from tfopt.models.bert import BertConfig
from tfopt.models.families.base import HEADS, Entry, Family, dense_entries, known, norm_entries
from tfopt.models.families.encoder import ACTIVATIONS, activation_of

_NAMES = {
    "vocab_size": "vocab_size", "dim": "hidden_size", "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads", "hidden_dim": "intermediate_size",
    "max_position_embeddings": "max_position_embeddings", "dropout": "hidden_dropout_prob",
}  # fmt: skip


def _read_config(raw: Mapping[str, Any]) -> BertConfig:
    found = {ours: raw[theirs] for theirs, ours in _NAMES.items() if theirs in raw}
    return BertConfig(**found, type_vocab_size=0, hidden_act=known(ACTIVATIONS, raw.get("activation", "gelu")))


def _write_config(config: BertConfig) -> dict[str, Any]:
    raw = {theirs: getattr(config, ours) for theirs, ours in _NAMES.items()}
    return {**raw, "activation": activation_of(config), "model_type": "distilbert"}


def _entries(config: BertConfig) -> Iterator[Entry]:
    for table in ("word_embeddings", "position_embeddings"):
        yield Entry(f"embeddings.{table}.weight", (f"{table}/embeddings",))
    yield from norm_entries("embeddings.LayerNorm", "embeddings_norm")
    for i in range(config.num_hidden_layers):
        theirs, ours = f"transformer.layer.{i}", f"layer_{i}"
        for part, name in (("q_lin", "query"), ("k_lin", "key"), ("v_lin", "value"), ("out_lin", "output")):
            yield from dense_entries(f"{theirs}.attention.{part}", f"{ours}_attention_{name}")
        yield from norm_entries(f"{theirs}.sa_layer_norm", f"{ours}_attention_norm")
        yield from dense_entries(f"{theirs}.ffn.lin1", f"{ours}_intermediate")
        yield from dense_entries(f"{theirs}.ffn.lin2", f"{ours}_output")
        yield from norm_entries(f"{theirs}.output_layer_norm", f"{ours}_output_norm")


FAMILY = Family(("distilbert.", ""), _read_config, _write_config, entries=_entries, unused=HEADS)
