"""LLaMA: Touvron et al., https://arxiv.org/abs/2302.13971; with the frequencies of Llama 3.

SmolLM2 is of this family too, and GGUF files call Mistral so.
"""

from tfopt.models.families.base import Family, Gguf
from tfopt.models.families.decoder import GGUF_NAMES, UNUSED, halves, read_rotary, rotary_entries, write_rotary

FAMILY = Family(
    ("",), read_rotary, write_rotary, entries=rotary_entries, unused=UNUSED,
    gguf=Gguf("llama", GGUF_NAMES, folder_value=halves),
)  # fmt: skip
