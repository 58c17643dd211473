"""Simulates integer arithmetic on a Keras model, layer by layer, in either generation.

`config` says what is wanted, `kinds` knows the layer types, `simulation` and `calls` put the rounding into a
model's layers and take it out again, `record` holds what a file must carry.
"""

from tfopt.quantization.config import NAMED, QuantizeConfig
from tfopt.quantization.record import Record, record_of

__all__ = ["NAMED", "QuantizeConfig", "Record", "record_of"]
