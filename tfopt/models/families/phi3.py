"""Phi-3: LLaMA's layout with joined projections and a window; https://arxiv.org/abs/2404.14219."""

from collections.abc import Iterator, Mapping
from typing import Any

from tfopt.decoding.config import CausalLMConfig
from tfopt.models.families.base import Entry, Family, Gguf, dense_entries, norm_entries
from tfopt.models.families.decoder import GGUF_NAMES, UNUSED, end_entries, read_rotary, write_rotary

_NAMES = {
    **GGUF_NAMES, "self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def _read_config(raw: Mapping[str, Any]) -> CausalLMConfig:
    return read_rotary(raw, sliding_window=raw.get("sliding_window"))


def _write_config(config: CausalLMConfig) -> dict[str, Any]:
    context = config.max_position_embeddings
    return write_rotary(config) | {
        "model_type": "phi3", "sliding_window": config.sliding_window, "original_max_position_embeddings": context,
    }  # fmt: skip


def _entries(config: CausalLMConfig) -> Iterator[Entry]:
    yield Entry("model.embed_tokens.weight", ("token_embeddings/embeddings",))
    for i in range(config.num_hidden_layers):
        theirs, ours = f"model.layers.{i}", f"layer_{i}"
        yield from norm_entries(f"{theirs}.input_layernorm", f"{ours}_attention_norm", False)
        parts = tuple(f"{ours}_attention_{part}/kernel" for part in ("query", "key", "value"))
        yield Entry(f"{theirs}.self_attn.qkv_proj.weight", parts, True)
        yield from dense_entries(f"{theirs}.self_attn.o_proj", f"{ours}_attention_output", False)
        yield from norm_entries(f"{theirs}.post_attention_layernorm", f"{ours}_mlp_norm", False)
        yield Entry(f"{theirs}.mlp.gate_up_proj.weight", (f"{ours}_gate/kernel", f"{ours}_up/kernel"), True)
        yield from dense_entries(f"{theirs}.mlp.down_proj", f"{ours}_down", False)
    yield from end_entries(config)


FAMILY = Family(
    ("",), _read_config, _write_config, entries=_entries, unused=UNUSED, gguf=Gguf("phi3", _NAMES),
)  # fmt: skip
