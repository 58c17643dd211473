"""Qwen2: LLaMA's layout with biases of queries, keys and values; https://arxiv.org/abs/2407.10671."""

from collections.abc import Mapping
from typing import Any

from tfopt.decoding.config import CausalLMConfig
from tfopt.errors import InputError
from tfopt.models.families.base import Family
from tfopt.models.families.decoder import UNUSED, read_rotary, rotary_entries, write_rotary


def _read_config(raw: Mapping[str, Any]) -> CausalLMConfig:
    return read_rotary(raw, window=_window(raw), attention_bias=True)


def _window(raw: Mapping[str, Any]) -> int | None:
    """The window that every layer has."""
    if not raw.get("use_sliding_window"):
        return None
    first = raw.get("max_window_layers", 28)  # the layers before see everything
    if first >= raw["num_hidden_layers"]:
        return None
    if first:
        raise InputError(f"a window in some layers only is not supported, got max_window_layers={first}")
    return raw.get("sliding_window", 4096)


FAMILY = Family(("",), _read_config, write_rotary, entries=rotary_entries, unused=UNUSED)
