"""Callbacks for `model.fit`."""

from tfopt.compress.cluster import WeightClustering
from tfopt.compress.prune import MagnitudePruning
from tfopt.compress.quantize import QuantizationMonitor
from tfopt.compress.shrink import StructuredPruning
from tfopt.train.checkpoints import Checkpoints
from tfopt.train.finite import FiniteWeights
from tfopt.train.journal import Journal

__all__ = [
    "Checkpoints",
    "FiniteWeights",
    "Journal",
    "MagnitudePruning",
    "QuantizationMonitor",
    "StructuredPruning",
    "WeightClustering",
]
