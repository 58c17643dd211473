"""Callbacks for `model.fit`."""

from tfopt.compress.cluster import WeightClustering
from tfopt.compress.prune import MagnitudePruning
from tfopt.compress.quantize import QuantizationMonitor
from tfopt.compress.shrink import StructuredPruning
from tfopt.train.checkpoints import Checkpoints
from tfopt.train.finite import FiniteWeights

__all__ = [
    "Checkpoints",
    "FiniteWeights",
    "MagnitudePruning",
    "QuantizationMonitor",
    "StructuredPruning",
    "WeightClustering",
]
