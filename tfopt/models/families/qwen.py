"""Qwen2, with biases of queries, keys and values, https://arxiv.org/abs/2407.10671, and Qwen3, with norms of
queries and keys instead, https://arxiv.org/abs/2505.09388.
"""

from collections.abc import Mapping
from typing import Any

from tfopt.decoding.config import CausalLMConfig
from tfopt.models.families.base import Family, Gguf
from tfopt.models.families.decoder import GGUF_NAMES, UNUSED, read_rotary, rotary_entries, write_rotary


def _read_qwen2(raw: Mapping[str, Any]) -> CausalLMConfig:
    return read_rotary(raw, **_windows(raw), attention_bias=True)


def _read_qwen3(raw: Mapping[str, Any]) -> CausalLMConfig:
    return read_rotary(raw, **_windows(raw), query_key_norm=True)


def _windows(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The window, and the layers before it begins, which see everything."""
    first, layers = raw.get("max_window_layers", 28), raw["num_hidden_layers"]
    if not raw.get("use_sliding_window") or first >= layers:
        return {}
    return {"sliding_window": raw.get("sliding_window", 4096), "full_layers": tuple(range(first))}


def _written(config: CausalLMConfig, kind: str) -> dict[str, Any]:
    return write_rotary(config) | {
        "model_type": kind, "sliding_window": config.sliding_window, "max_window_layers": len(config.full_layers),
        "use_sliding_window": config.sliding_window is not None,
    }  # fmt: skip


QWEN2 = Family(
    ("",), _read_qwen2, lambda config: _written(config, "qwen2"), entries=rotary_entries, unused=UNUSED,
    gguf=Gguf("qwen2", GGUF_NAMES),
)  # fmt: skip
QWEN3 = Family(
    ("",), _read_qwen3, lambda config: _written(config, "qwen3"), entries=rotary_entries, unused=UNUSED,
    gguf=Gguf("qwen3", GGUF_NAMES),
)  # fmt: skip
