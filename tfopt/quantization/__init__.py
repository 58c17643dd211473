"""Simulates integer arithmetic on a Keras model, layer by layer, in either generation.

`config` says what is wanted, `kinds` knows the layer types, `simulation` and `calls` put the rounding into a
model's layers and take it out again, `record` holds what a file must carry. Without training, `calibration`
finds grids and ranges, with the help of `gptq`, `smooth` and `sensitivity`. Importing it loads no TensorFlow.
"""

from tfopt.quantization.config import NAMED, QuantizeConfig

__all__ = ["NAMED", "QuantizeConfig"]
