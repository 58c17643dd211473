"""Callbacks for `model.fit`."""

from tfopt.compress.cluster import WeightClustering
from tfopt.compress.prune import MagnitudePruning
from tfopt.compress.quantize import QuantizationMonitor
from tfopt.compress.shrink import StructuredPruning

__all__ = ["MagnitudePruning", "QuantizationMonitor", "StructuredPruning", "WeightClustering"]
