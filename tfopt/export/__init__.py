"""Writes a model as an artifact for another runtime, and verifies what it wrote."""

from tfopt.export.artifact import Artifact
from tfopt.export.checkpoint import export_streamed
from tfopt.export.export import export

__all__ = ["Artifact", "export", "export_streamed"]
