"""LLaMA: Touvron et al., https://arxiv.org/abs/2302.13971."""

from tfopt.models.families.base import Family
from tfopt.models.families.decoder import UNUSED, read_rotary, rotary_entries, write_rotary

FAMILY = Family(("",), read_rotary, write_rotary, entries=rotary_entries, unused=UNUSED)
