"""Runs artifacts: one interface over Keras models, SavedModels and TFLite files."""

from tfopt.runtime.predictor import Predictor, StoredWeight

__all__ = ["Predictor", "StoredWeight"]
