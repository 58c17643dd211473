"""What an export gives back."""

import dataclasses
from pathlib import Path

from tfopt.tflite.layer_bits import LayerBits


@dataclasses.dataclass(frozen=True)
class Check:
    """One check that an artifact passed: its name, what was found, and the limit it had to keep."""

    name: str
    found: float | str
    limit: float | str


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A verified file or folder.

    Attributes:
        path: the `.tflite` file or the SavedModel folder.
        format: "saved_model" or "tflite".
        quantization: None, "float16", a name as in `quantization.NAMED`, or "custom".
        jit_compile: whether the saved function compiles with XLA when it is loaded.
        lengths: sequence lengths that have a signature of their own; empty if the model has no
            sequence axis or takes any length.
        max_abs_error: largest difference from the Keras model on the verification samples.
        agreement: share of samples whose largest output is the same class as the Keras model's.
        checks: every check that was made.
        layers: the bits of every weight matrix, with the reason where it stayed in float; empty for
            files without integer weights.
    """

    path: Path
    format: str
    quantization: str | None
    jit_compile: bool
    lengths: tuple[int, ...]
    max_abs_error: float
    agreement: float | None
    checks: tuple[Check, ...]
    layers: tuple[LayerBits, ...] = ()
