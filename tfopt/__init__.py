"""Keras models made smaller and faster at nearly the same accuracy, verified and measured.

Names are resolved on first use, so that importing the package loads no TensorFlow.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Artifact": "tfopt.export",
    "Inspection": "tfopt.measure.inspection",
    "Measurement": "tfopt.measure",
    "Predictor": "tfopt.runtime",
    "Recipe": "tfopt.recipe",
    "Report": "tfopt.report",
    "TfoptError": "tfopt.errors",
    "compare": "tfopt.measure",
    "export": "tfopt.export",
    "inspect": "tfopt.measure.inspection",
    "measure": "tfopt.measure",
    "prune": "tfopt.compress.prune",
    "run": "tfopt.pipeline",
}
_MODULES = ("callbacks", "errors", "models", "schedules")

__all__ = [*_HOME, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"tfopt.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'tfopt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
