"""RoBERTa: BERT's layout, whose positions begin behind the padding's; https://arxiv.org/abs/1907.11692."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tfopt.models.bert import BertConfig
from tfopt.models.families.base import HEADS, Family
from tfopt.models.families.encoder import entries, read_config, write_config


def _read_config(raw: Mapping[str, Any]) -> BertConfig:
    found = read_config({"type_vocab_size": 1, **raw})
    return dataclasses.replace(found, position_offset=raw.get("pad_token_id", 1) + 1)


FAMILY = Family(("roberta.", ""), _read_config, write_config, entries=entries, unused=HEADS)
