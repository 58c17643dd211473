"""Keras models made smaller and faster at nearly the same accuracy, verified and measured.

Names are resolved on first use, so that importing the package loads no TensorFlow.
"""

import importlib
import sys
import types
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Artifact": "tfopt.export",
    "Distiller": "tfopt.compress.distill",
    "GenerateConfig": "tfopt.decoding.generate",
    "Generator": "tfopt.generation",
    "Inspection": "tfopt.inspection",
    "Measurement": "tfopt.measure",
    "LoraConfig": "tfopt.compress.lora",
    "Predictor": "tfopt.runtime",
    "PruneConfig": "tfopt.compress.prune",
    "QuantizeConfig": "tfopt.quantization",
    "ShrinkConfig": "tfopt.compress.shrink",
    "Recipe": "tfopt.recipe",
    "Report": "tfopt.report",
    "TfoptError": "tfopt.errors",
    "cluster": "tfopt.compress.cluster",
    "compare": "tfopt.compare",
    "cut_vocabulary": "tfopt.compress.vocabulary",
    "export": "tfopt.export",
    "factorize": "tfopt.compress.low_rank",
    "finish": "tfopt.compress.finish",
    "inspect": "tfopt.inspection",
    "measure": "tfopt.measure",
    "pack": "tfopt.archive",
    "measure_generation": "tfopt.measure.generation",
    "measure_sensitivity": "tfopt.quantization.sensitivity",
    "perplexity": "tfopt.measure.perplexity",
    "prune": "tfopt.compress.prune",
    "quantize_aware": "tfopt.compress.quantize",
    "run": "tfopt.pipeline",
    "search": "tfopt.search",
    "shrink": "tfopt.compress.shrink",
    "unpack": "tfopt.archive",
}
_MODULES = ("callbacks", "errors", "models", "schedules")

__all__ = [*_HOME, *_MODULES]


class _Package(types.ModuleType):
    """Keeps `tfopt.export` and `tfopt.measure` the functions: importing the folders of the same name
    would otherwise put the folders in their place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"tfopt.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'tfopt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
