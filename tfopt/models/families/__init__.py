"""The table of families of public checkpoints, by the `model_type` of their `config.json`; one file each."""

from typing import Any

from tfopt.decoding.config import CausalLMConfig
from tfopt.errors import ModelFileError
from tfopt.models.families import bert, decoder, distilbert, gpt2, llama, mistral, qwen2, roberta
from tfopt.models.families.base import Config, Entry, Family

__all__ = ["FAMILIES", "Config", "Entry", "Family", "family_of", "write_causal"]

FAMILIES: dict[str, Family] = {
    "bert": bert.FAMILY,
    "roberta": roberta.FAMILY,
    "distilbert": distilbert.FAMILY,
    "gpt2": gpt2.FAMILY,
    "llama": llama.FAMILY,
    "mistral": mistral.FAMILY,
    "qwen2": qwen2.FAMILY,
}


def family_of(raw: Any, where: str) -> tuple[str, Family]:
    """The family that a `config.json` names.

    Raises:
        ModelFileError: it names none that is known.
    """
    kind = raw.get("model_type") if isinstance(raw, dict) else None
    if not isinstance(kind, str) or kind not in FAMILIES:
        known = ", ".join(repr(name) for name in FAMILIES)
        raise ModelFileError(f"{where}: architecture {kind!r} is not supported; supported: {known}")
    return kind, FAMILIES[kind]


def write_causal(config: CausalLMConfig) -> dict[str, Any]:
    """`config.json` of a decoder, in the layout that holds it.

    Raises:
        InputError: none does.
    """
    return gpt2.write_config(config) if gpt2.is_layout(config) else decoder.write_rotary(config)
