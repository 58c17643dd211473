"""Builders of Keras models and readers of public checkpoints.

Every model is a functional one of built-in layers and operations: it saves, reloads and converts
without custom objects, in both Keras generations.
"""

from tfopt.models.bert import BertConfig, bert
from tfopt.models.pretrained import from_pretrained

__all__ = ["BertConfig", "bert", "from_pretrained"]
