"""Marian, whose translators are OPUS-MT's: Junczys-Dowmunt et al., https://arxiv.org/abs/1804.00344."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from tfopt.decoding.seq2seq_config import Seq2SeqConfig
from tfopt.errors import InputError
from tfopt.models.families.base import Entry, Family, dense_entries, known, norm_entries
from tfopt.models.families.decoder import ACTIVATIONS, end_tokens

_SIZES = {
    "vocab_size": ("vocab_size", 58101), "d_model": ("hidden_size", 1024), "encoder_layers": ("encoder_layers", 12),
    "decoder_layers": ("decoder_layers", 12), "encoder_attention_heads": ("num_attention_heads", 16),
    "encoder_ffn_dim": ("intermediate_size", 4096), "max_position_embeddings": ("max_position_embeddings", 1024),
    "dropout": ("dropout", 0.1),
}  # fmt: skip
_PARTS = (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("out_proj", "output"))
_EPSILON = 1e-5  # of PyTorch's norms


def _read_config(raw: Mapping[str, Any]) -> Seq2SeqConfig:
    found = {ours: raw.get(theirs, default) for theirs, (ours, default) in _SIZES.items()}
    for name in ("attention_heads", "ffn_dim"):
        if raw.get(f"decoder_{name}", raw.get(f"encoder_{name}")) != raw.get(f"encoder_{name}"):
            raise InputError(f"decoder_{name} must be encoder_{name}, got {raw[f'decoder_{name}']}")
    if raw.get("share_encoder_decoder_embeddings") is False or raw.get("tie_word_embeddings") is False:
        raise InputError("tables of their own for source, target or logits are not supported")
    if raw.get("decoder_vocab_size", found["vocab_size"]) != found["vocab_size"]:
        raise InputError("a vocabulary of its own for the target is not supported")
    if raw.get("normalize_embedding") or raw.get("normalize_before") or raw.get("add_final_layer_norm"):
        raise InputError("norms of the embeddings, before layers or behind the last are not supported")
    pad = raw.get("pad_token_id", 58100)
    width, heads = found["hidden_size"], found["num_attention_heads"]
    return Seq2SeqConfig(
        **found, positions="sinusoidal", norm="layer", norm_eps=_EPSILON, norm_first=False, bias=True,
        logits_bias=True, hidden_act=known(ACTIVATIONS, raw.get("activation_function", "gelu")),
        embedding_scale=math.sqrt(width) if raw.get("scale_embedding") else 1.0,
        score_scale=(width // heads) ** -0.5, start_token=raw.get("decoder_start_token_id", pad),
        end_tokens=end_tokens({"eos_token_id": raw.get("eos_token_id", 0)}), barred_tokens=(pad,),
    )  # fmt: skip


def _write_config(config: Seq2SeqConfig) -> dict[str, Any]:
    names = {ours: theirs for theirs, ours in ACTIVATIONS.items()} | {"gelu_tanh": "gelu_new", "silu": "swish"}
    end = list(config.end_tokens)
    return {
        **{theirs: getattr(config, ours) for theirs, (ours, _) in _SIZES.items()}, "model_type": "marian",
        "decoder_attention_heads": config.num_attention_heads, "decoder_ffn_dim": config.intermediate_size,
        "activation_function": names[config.hidden_act], "scale_embedding": config.embedding_scale != 1.0,
        "static_position_embeddings": True, "decoder_start_token_id": config.start_token,
        "is_encoder_decoder": True,
        "pad_token_id": next(iter(config.barred_tokens), config.start_token),
        "eos_token_id": end[0] if len(end) == 1 else end, "forced_eos_token_id": end[0] if end else None,
        "num_hidden_layers": config.encoder_layers, "architectures": ["MarianMTModel"],
    }  # fmt: skip


def _entries(config: Seq2SeqConfig) -> Iterator[Entry]:
    yield Entry("model.shared.weight", ("token_embeddings/embeddings",))
    for side, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        attentions = [("self_attn", "attention"), *([("encoder_attn", "cross")] if side == "decoder" else [])]
        for i in range(layers):
            where, name = f"model.{side}.layers.{i}", f"{side}_{i}"
            for theirs, ours in attentions:
                for part, long in _PARTS:
                    yield from dense_entries(f"{where}.{theirs}.{part}", f"{name}_{ours}_{long}")
                yield from norm_entries(f"{where}.{theirs}_layer_norm", f"{name}_{ours}_norm")
            yield from dense_entries(f"{where}.fc1", f"{name}_up")
            yield from dense_entries(f"{where}.fc2", f"{name}_down")
            yield from norm_entries(f"{where}.final_layer_norm", f"{name}_mlp_norm")
    yield Entry("final_logits_bias", ("logits_bias/beta",), row=True)


FAMILY = Family(
    ("",), _read_config, _write_config, entries=_entries,
    unused=("model.encoder.embed_", "model.decoder.embed_", "lm_head."),
)  # fmt: skip
