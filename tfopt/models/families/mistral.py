"""Mistral: LLaMA's layout with a window in every layer; https://arxiv.org/abs/2310.06825."""

from collections.abc import Mapping
from typing import Any

from tfopt.decoding.config import CausalLMConfig
from tfopt.models.families.base import Family
from tfopt.models.families.decoder import UNUSED, read_rotary, rotary_entries, write_rotary


def _read_config(raw: Mapping[str, Any]) -> CausalLMConfig:
    return read_rotary(raw, sliding_window=raw.get("sliding_window", 4096))


def _write_config(config: CausalLMConfig) -> dict[str, Any]:
    return write_rotary(config) | {"model_type": "mistral", "sliding_window": config.sliding_window}


FAMILY = Family(("",), _read_config, _write_config, entries=rotary_entries, unused=UNUSED)
