"""Measures artifacts: bytes, sparsity, latency, throughput, memory, accuracy."""

from tfopt.measure.measure import measure
from tfopt.measure.results import Measurement

__all__ = ["Measurement", "measure"]
