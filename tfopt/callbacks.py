"""Callbacks for `model.fit`."""

from tfopt.compress.prune import MagnitudePruning

__all__ = ["MagnitudePruning"]
