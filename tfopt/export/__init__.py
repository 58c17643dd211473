"""Writes a Keras model as an artifact for another runtime, and verifies what it wrote."""

from tfopt.export.artifact import Artifact
from tfopt.export.export import export

__all__ = ["Artifact", "export"]
