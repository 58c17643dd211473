"""A second runtime for artifacts, to compare the first with: other kernels, by other hands."""

from pathlib import Path
from typing import Any

import numpy as np

from tfopt.errors import InputError, ModelFileError
from tfopt.runtime.tflite import TFLitePredictor, predictor_of
from tfopt.tflite.file import read_tflite


class TensorFlowLitePredictor(TFLitePredictor):
    """A `.tflite` file in TensorFlow's own interpreter, with its built-in kernels instead of a delegate's.

    Those take the scales of blocks for scales of rows, without a word; files in blocks keep the delegate.
    """

    def _make_interpreter(self, threads: int) -> Any:
        import tensorflow as tf

        kinds = tf.lite.experimental.OpResolverType
        in_blocks = any(c.scale is not None and c.scale.ndim == 2 for c in read_tflite(self.path).constants)
        kernels = kinds.AUTO if in_blocks else kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        return tf.lite.Interpreter(str(self.path), num_threads=threads, experimental_op_resolver_type=kernels)


def run_second(path: Path, inputs: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray] | None, str]:
    """Runs an artifact in a second runtime.

    Returns:
        Outputs by name and the runtime's name; None and the reason where it does not take the artifact.
    """
    if path.suffix == ".litertlm":
        return None, "LiteRT-LM, by what it says"
    if path.suffix != ".tflite" or predictor_of(path) is not TFLitePredictor:
        return None, "none for this format"
    try:
        return TensorFlowLitePredictor(path).predict(inputs), "TensorFlow Lite"
    except (InputError, ModelFileError) as error:  # operators that only LiteRT has
        return None, f"TensorFlow Lite does not take the file: {str(error)[:120]}"
