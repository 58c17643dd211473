"""Builders of Keras models and readers of public checkpoints.

Every model is a functional one of built-in layers and operations: it saves, reloads and converts
without custom objects, in both Keras generations.
"""

from tfopt._keras.keras_api import save_model as save
from tfopt._keras.loading import load_model as load
from tfopt.decoding.config import CausalLMConfig
from tfopt.decoding.seq2seq_config import Seq2SeqConfig
from tfopt.models.bert import BertConfig
from tfopt.models.causal_lm import causal_lm
from tfopt.models.encoder import bert, encoder
from tfopt.models.ensemble import ensemble
from tfopt.models.llama2c import read_llama2c
from tfopt.models.pretrained import from_pretrained, save_pretrained
from tfopt.models.rotary_encoder import RotaryEncoderConfig
from tfopt.models.rotated import rotated
from tfopt.models.seq2seq import seq2seq

__all__ = [
    "BertConfig", "CausalLMConfig", "RotaryEncoderConfig", "Seq2SeqConfig", "bert", "causal_lm", "encoder",
    "ensemble",
    "from_pretrained", "load", "read_llama2c", "rotated", "save", "save_pretrained", "seq2seq",
]  # fmt: skip
