"""Callbacks for `model.fit`."""

from tfopt.compress.cluster import WeightClustering
from tfopt.compress.prune import MagnitudePruning
from tfopt.compress.quantize import QuantizationMonitor

__all__ = ["MagnitudePruning", "QuantizationMonitor", "WeightClustering"]
