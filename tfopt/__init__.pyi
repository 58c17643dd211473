from . import callbacks, compress, errors, models, schedules, store
from ._base.spread import Workers
from .archive import pack, unpack
from .compress.cluster import cluster
from .compress.distill import Distiller
from .compress.finish import finish
from .compress.lora import LoraConfig
from .compress.low_rank import factorize
from .compress.prune import PruneConfig, prune
from .compress.quantize import quantize_aware
from .compress.shrink import ShrinkConfig, shrink
from .compress.vocabulary import cut_vocabulary
from .decoding.generate import GenerateConfig
from .engine.batch_prediction import batch_predict
from .engine.generator import Generator
from .errors import TfoptError
from .export import Artifact, export, export_streamed
from .measure import Measurement, measure
from .measure.generation import measure_generation
from .measure.perplexity import perplexity
from .quantization import QuantizeConfig
from .quantization.sensitivity import measure_sensitivity
from .recipe import Recipe
from .report import Report
from .run.compare import compare
from .run.inspection import Inspection, inspect
from .run.pipeline import run
from .runtime import Predictor
from .search import optimize, search

__version__: str
__all__ = [
    "Artifact", "Distiller", "GenerateConfig", "Generator", "Inspection", "LoraConfig", "Measurement",
    "Predictor", "PruneConfig", "QuantizeConfig", "Recipe", "Report", "ShrinkConfig", "TfoptError", "Workers",
    "batch_predict", "callbacks", "cluster", "compare", "compress", "cut_vocabulary", "errors", "export",
    "export_streamed", "factorize",
    "finish", "inspect", "measure", "measure_generation", "measure_sensitivity", "models", "optimize", "pack",
    "perplexity", "prune", "quantize_aware", "run", "schedules", "search", "shrink", "store", "unpack",
]  # fmt: skip
