"""Gemma, https://arxiv.org/abs/2403.08295, Gemma 2, https://arxiv.org/abs/2408.00118, Gemma 3's text models,
https://arxiv.org/abs/2503.19786, and EmbeddingGemma, https://arxiv.org/abs/2509.20354, whose tokens see both sides.

Scales of norms are stored less one; the rows of the token table are multiplied by the root of the width.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tfopt.decoding.config import CausalLMConfig
from tfopt.errors import InputError
from tfopt.models.families.base import Entry, Family, Gguf, dense_entries, norm_entries
from tfopt.models.families.decoder import (
    GGUF_NAMES,
    UNUSED,
    read_rotary,
    rope_factors,
    rope_of,
    write_rotary,
)
from tfopt.models.rotary_encoder import RotaryEncoderConfig

_NAMES = {
    **GGUF_NAMES, "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip
_ACT = "gelu_pytorch_tanh"
_FULL, _LOCAL = "full_attention", "sliding_attention"


def _read_gemma(raw: Mapping[str, Any], **differs: Any) -> CausalLMConfig:
    # `hidden_act` of the first files says "gelu" and means the approximation.
    act = raw.get("hidden_activation") or _ACT
    return read_rotary({**raw, "hidden_act": act}, **{
        "tie_word_embeddings": raw.get("tie_word_embeddings", True),
        "embedding_scale": math.sqrt(raw["hidden_size"]), **differs,
    })  # fmt: skip


def _read_gemma2(raw: Mapping[str, Any], every: int = 2, **differs: Any) -> CausalLMConfig:
    size = raw.get("head_dim", 256)
    return _read_gemma(raw, **{
        "head_dim": size, "post_norms": True, "query_scale": raw.get("query_pre_attn_scalar", size) ** -0.5,
        "attention_softcap": raw.get("attn_logit_softcapping"),
        "logit_softcap": raw.get("final_logit_softcapping"), "sliding_window": raw.get("sliding_window", 4096),
        "full_layers": _full_layers(raw, every), **differs,
    })  # fmt: skip


def _read_gemma3(raw: Mapping[str, Any]) -> CausalLMConfig:
    full, local = rope_of(raw, _FULL), rope_of(raw, _LOCAL)
    theta = raw.get("rope_theta") or full.get("rope_theta") or 1e6
    size = raw.get("head_dim", 256)
    return _read_gemma2(
        {**raw, "rope_theta": theta, "rope_scaling": None, "rope_parameters": None},
        every=raw.get("sliding_window_pattern") or 6,
        query_key_norm=True, rope_factors=rope_factors(full, size=size, theta=theta),
        local_rope_theta=raw.get("rope_local_base_freq") or local.get("rope_theta") or 1e4,
    )  # fmt: skip


def _full_layers(raw: Mapping[str, Any], every: int) -> tuple[int, ...]:
    layers, kinds = raw["num_hidden_layers"], raw.get("layer_types")
    if kinds is None:
        return tuple(range(every - 1, layers, every))
    if not isinstance(kinds, list) or len(kinds) != layers or not set(kinds) <= {_FULL, _LOCAL}:
        raise InputError(f"layer_types must be {layers} of {_FULL!r} or {_LOCAL!r}, got {str(kinds)[:80]}")
    return tuple(i for i, kind in enumerate(kinds) if kind == _FULL)


def _write_gemma(config: CausalLMConfig) -> dict[str, Any]:
    return write_rotary(config) | {"model_type": "gemma", "hidden_activation": _ACT, "hidden_act": _ACT}


def _write_gemma2(config: CausalLMConfig) -> dict[str, Any]:
    kinds = [_FULL if config.window_of(i) is None else _LOCAL for i in range(config.num_hidden_layers)]
    return _write_gemma(config) | {
        "model_type": "gemma2", "query_pre_attn_scalar": _whole(config.score_scale**-2),
        "attn_logit_softcapping": config.attention_softcap, "final_logit_softcapping": config.logit_softcap,
        "sliding_window": config.sliding_window, "layer_types": kinds,
    }  # fmt: skip


def _whole(value: float) -> float:
    """What was a whole number before it was a root."""
    return round(value) if abs(value - round(value)) < 1e-6 else value


def _write_gemma3(config: CausalLMConfig) -> dict[str, Any]:
    raw = _write_gemma2(config)
    local = {"rope_type": "default", "rope_theta": config.local_rope_theta}
    full = {"rope_type": "default", **(raw["rope_scaling"] or {}), "rope_theta": config.rope_theta}
    return raw | {
        "model_type": "gemma3_text", "rope_local_base_freq": config.local_rope_theta,
        "rope_parameters": {_FULL: full, _LOCAL: local},
    }  # fmt: skip


def _read_encoder(raw: Mapping[str, Any]) -> RotaryEncoderConfig:
    # Stored is how far a window reaches in all; a token sees half of it on either side, and itself.
    return RotaryEncoderConfig(_read_gemma3({**raw, "sliding_window": raw.get("sliding_window", 4096) // 2 + 1}))


def _write_encoder(config: RotaryEncoderConfig) -> dict[str, Any]:
    window = config.network.sliding_window
    assert window is not None
    raw = _write_gemma3(config.network)
    return raw | {"use_bidirectional_attention": True, "sliding_window": 2 * (window - 1)}


def _encoder_entries(config: RotaryEncoderConfig) -> Iterator[Entry]:
    for entry in _entries(config.network):
        yield dataclasses.replace(entry, theirs=entry.theirs.removeprefix("model."))


def _entries(config: CausalLMConfig) -> Iterator[Entry]:
    yield Entry("model.embed_tokens.weight", ("token_embeddings/embeddings",))
    for i in range(config.num_hidden_layers):
        theirs, ours = f"model.layers.{i}", f"layer_{i}"
        norms = {"input": "attention", "post_attention": "mlp"}
        if config.post_norms:
            norms = {
                "input": "attention", "post_attention": "attention_post", "pre_feedforward": "mlp",
                "post_feedforward": "mlp_post",
            }  # fmt: skip
        for name, place in norms.items():
            yield from _norm(f"{theirs}.{name}_layernorm", f"{ours}_{place}_norm")
        for part, name in (("q", "query"), ("k", "key"), ("v", "value")):
            yield from dense_entries(f"{theirs}.self_attn.{part}_proj", f"{ours}_attention_{name}", False)
            if config.query_key_norm and name != "value":
                yield from _norm(f"{theirs}.self_attn.{part}_norm", f"{ours}_attention_{name}_norm")
        yield from dense_entries(f"{theirs}.self_attn.o_proj", f"{ours}_attention_output", False)
        for part in ("gate", "up", "down"):
            yield from dense_entries(f"{theirs}.mlp.{part}_proj", f"{ours}_{part}", False)
    yield from _norm("model.norm", "final_norm")
    if not config.tie_word_embeddings:
        yield Entry("lm_head.weight", ("logits/kernel",), True)


def _norm(theirs: str, ours: str) -> Iterator[Entry]:
    return norm_entries(theirs, ours, False, offset=1.0)


def _less_one(name: str, value: np.ndarray, config: CausalLMConfig) -> np.ndarray:
    """Norms as folders store them; GGUF files have the whole scale."""
    return value - np.float32(1.0) if "norm" in name else value


def _gguf(architecture: str, names: Mapping[str, str] = _NAMES) -> Gguf:
    return Gguf(architecture, names, folder_value=_less_one)


GEMMA = Family(("",), _read_gemma, _write_gemma, entries=_entries, unused=UNUSED, gguf=_gguf("gemma", GGUF_NAMES))
GEMMA2 = Family(("",), _read_gemma2, _write_gemma2, entries=_entries, unused=UNUSED, gguf=_gguf("gemma2"))
GEMMA3 = Family(("",), _read_gemma3, _write_gemma3, entries=_entries, unused=UNUSED, gguf=_gguf("gemma3"))
EMBEDDING_GEMMA = Family(("", "model."), _read_encoder, _write_encoder, entries=_encoder_entries, unused=UNUSED)
