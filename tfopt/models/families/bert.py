"""BERT: Devlin et al., https://arxiv.org/abs/1810.04805."""

from tfopt.models.families.base import HEADS, Family
from tfopt.models.families.encoder import entries, read_config, write_config

FAMILY = Family(("", "bert."), read_config, write_config, entries=entries, unused=HEADS)
