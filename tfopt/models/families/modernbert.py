"""ModernBERT: Warner et al., https://arxiv.org/abs/2412.13663.

Queries, keys and values lie in one matrix, and so do both halves of the gated feed-forward layer.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from tfopt.decoding.config import CausalLMConfig
from tfopt.errors import InputError
from tfopt.models.families.base import HEADS, Entry, Family, dense_entries, known, norm_entries
from tfopt.models.families.decoder import ACTIVATIONS, activation_of, rope_of
from tfopt.models.rotary_encoder import RotaryEncoderConfig

_SIZES = {
    "vocab_size": 50368, "hidden_size": 768, "intermediate_size": 1152, "num_hidden_layers": 22,
    "num_attention_heads": 12, "max_position_embeddings": 8192,
}  # fmt: skip
_FULL, _LOCAL = "full_attention", "sliding_attention"


def _read_config(raw: Mapping[str, Any]) -> RotaryEncoderConfig:
    biased = [name for name in ("attention_bias", "mlp_bias", "classifier_bias") if raw.get(name)]
    if biased:
        raise InputError(f"{biased[0]} is not supported")
    if raw.get("classifier_activation", "gelu") != "gelu":
        raise InputError(f"classifier_activation must be 'gelu', got {raw['classifier_activation']!r}")
    layers = raw.get("num_hidden_layers", _SIZES["num_hidden_layers"])
    every = raw.get("global_attn_every_n_layers") or 3
    kinds = raw.get("layer_types") or [_LOCAL if i % every else _FULL for i in range(layers)]
    if len(kinds) != layers or not set(kinds) <= {_FULL, _LOCAL}:
        raise InputError(f"layer_types must be {layers} of {_FULL!r} or {_LOCAL!r}, got {str(kinds)[:80]}")
    full, local = rope_of(raw, _FULL), rope_of(raw, _LOCAL)
    scaled = {kind for rope in (full, local) if (kind := rope.get("rope_type", "default")) != "default"}
    if scaled:
        raise InputError(f"rotary positions of type {min(scaled)!r} are not supported here")
    network = CausalLMConfig(
        **{name: raw.get(name, default) for name, default in _SIZES.items()},
        norm="layer", norm_eps=raw.get("norm_eps", 1e-5), tie_word_embeddings=True,
        hidden_act=known(ACTIVATIONS, raw.get("hidden_activation", "gelu")),
        rope_theta=full.get("rope_theta") or raw.get("global_rope_theta") or 160_000.0,
        local_rope_theta=local.get("rope_theta") or raw.get("local_rope_theta") or 10_000.0,
        sliding_window=raw.get("local_attention", 128) // 2 + 1,
        full_layers=tuple(i for i, kind in enumerate(kinds) if kind == _FULL),
        dropout=raw.get("embedding_dropout", 0.0),
    )  # fmt: skip
    return RotaryEncoderConfig(
        network, embedding_norm=True, first_norm=False, norm_bias=raw.get("norm_bias", False), prediction_head=True
    )


def _write_config(config: RotaryEncoderConfig) -> dict[str, Any]:
    network = config.network
    assert network.sliding_window is not None
    kinds = [_LOCAL if network.window_of(i) else _FULL for i in range(network.num_hidden_layers)]
    thetas = {_FULL: network.rope_theta, _LOCAL: network.local_rope_theta or network.rope_theta}
    return {
        **{name: getattr(network, name) for name in _SIZES},
        "model_type": "modernbert", "norm_eps": network.norm_eps, "norm_bias": config.norm_bias,
        "hidden_activation": activation_of(network), "local_attention": 2 * (network.sliding_window - 1),
        "layer_types": kinds, "global_rope_theta": thetas[_FULL], "local_rope_theta": thetas[_LOCAL],
        "rope_parameters": {k: {"rope_type": "default", "rope_theta": theta} for k, theta in thetas.items()},
        "attention_bias": False, "mlp_bias": False,
    }  # fmt: skip


def _entries(config: RotaryEncoderConfig) -> Iterator[Entry]:
    bias = config.norm_bias
    yield Entry("embeddings.tok_embeddings.weight", ("token_embeddings/embeddings",))
    yield from norm_entries("embeddings.norm", "embeddings_norm", bias)
    for i in range(config.network.num_hidden_layers):
        theirs, ours = f"layers.{i}", f"layer_{i}"
        if i:
            yield from norm_entries(f"{theirs}.attn_norm", f"{ours}_attention_norm", bias)
        parts = tuple(f"{ours}_attention_{part}/kernel" for part in ("query", "key", "value"))
        yield Entry(f"{theirs}.attn.Wqkv.weight", parts, True)
        yield from dense_entries(f"{theirs}.attn.Wo", f"{ours}_attention_output", False)
        yield from norm_entries(f"{theirs}.mlp_norm", f"{ours}_mlp_norm", bias)
        yield Entry(f"{theirs}.mlp.Wi.weight", (f"{ours}_gate/kernel", f"{ours}_up/kernel"), True)
        yield from dense_entries(f"{theirs}.mlp.Wo", f"{ours}_down", False)
    yield from norm_entries("final_norm", "final_norm", bias)


FAMILY = Family(("model.", ""), _read_config, _write_config, entries=_entries, unused=(*HEADS, "head.", "decoder."))
