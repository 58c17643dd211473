"""SmolLM3: LLaMA's layout with layers that do not turn; https://huggingface.co/blog/smollm3."""

from collections.abc import Mapping
from typing import Any

from tfopt.decoding.config import CausalLMConfig
from tfopt.errors import InputError
from tfopt.models.families.base import Family, Gguf
from tfopt.models.families.decoder import GGUF_NAMES, UNUSED, halves, read_rotary, rotary_entries, write_rotary


def _read_config(raw: Mapping[str, Any]) -> CausalLMConfig:
    layers, every = raw["num_hidden_layers"], raw.get("no_rope_layer_interval", 4)
    turned = raw.get("no_rope_layers")  # in spite of its name, 1 where there are positions
    if turned is None:
        turned = [int((i + 1) % every != 0) for i in range(layers)]
    if not isinstance(turned, list) or len(turned) != layers or not set(turned) <= {0, 1}:
        raise InputError(f"no_rope_layers must be {layers} numbers, 0 or 1, got {str(turned)[:80]}")
    if raw.get("use_sliding_window"):
        raise InputError("windows are not supported for smollm3")
    return read_rotary(
        raw, unrotated_layers=tuple(i for i, has in enumerate(turned) if not has),
        tie_word_embeddings=raw.get("tie_word_embeddings", True),
    )  # fmt: skip


def _write_config(config: CausalLMConfig) -> dict[str, Any]:
    turned = [int(i not in config.unrotated_layers) for i in range(config.num_hidden_layers)]
    return write_rotary(config) | {
        "model_type": "smollm3", "no_rope_layers": turned, "use_sliding_window": False, "attention_bias": False,
        "mlp_bias": False, "attention_dropout": 0.0, "layer_types": ["full_attention"] * config.num_hidden_layers,
    }  # fmt: skip


FAMILY = Family(
    ("",), _read_config, _write_config, entries=rotary_entries, unused=UNUSED,
    gguf=Gguf("smollm3", GGUF_NAMES, folder_value=halves),
)  # fmt: skip
