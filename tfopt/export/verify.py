"""Checks a written artifact against the model it came from.

The artifact is loaded and run in a child process; what is inside is compared with what was asked for;
its outputs are compared with the Keras model's. Every check has a name and a stated limit.
"""

from pathlib import Path

import numpy as np

from tfopt.child import ChildFailedError, run_in_child
from tfopt.errors import VerificationError
from tfopt.export.artifact import Check
from tfopt.export.saved_model import must_compile
from tfopt.tflite_file import read_tflite

# Largest difference of an output as a share of the largest output of the Keras model.
TOLERANCE = {None: 1e-3, "float16": 2e-2, "dynamic_int8": 0.25}
# Share of the samples that must get the class that the Keras model gives them.
AGREEMENT = {None: 1.0, "float16": 0.99, "dynamic_int8": 0.95}
# The converter leaves smaller tensors in float: nothing is gained by narrowing them.
SMALLEST_QUANTIZED = 1024


def check_contents(path: Path, format: str, quantization: str | None, jit_compile: bool) -> list[Check]:
    """Checks that the weights have the asked-for types and that no table is widened as a whole.

    Raises:
        VerificationError: named "dtypes", "table_lookup" or "xla".
    """
    if format == "saved_model":
        if must_compile(path) != jit_compile:
            raise VerificationError("xla", f"jit_compile={jit_compile} was asked for, the file says otherwise")
        return [Check("xla", str(jit_compile), str(jit_compile))]
    file = read_tflite(path)
    expected = {None: "float32", "float16": "float16", "dynamic_int8": "int8"}[quantization]
    weights = [
        c
        for c in file.constants
        if c.is_matrix and c.data.size >= SMALLEST_QUANTIZED and (c.is_kernel or c.is_lookup)
    ]
    wrong = [c for c in weights if c.dtype != expected]
    if wrong:
        raise VerificationError("dtypes", f"weight {wrong[0].name!r} is {wrong[0].dtype}, not {expected}")
    if file.dequantized_tables:
        raise VerificationError(
            "table_lookup", f"table {file.dequantized_tables[0]!r} is widened as a whole on every call"
        )
    return [Check("dtypes", expected, expected), Check("table_lookup", "rows only", "rows only")]


def check_outputs(
    path: Path,
    samples: dict[str, np.ndarray],
    reference: dict[str, np.ndarray],
    quantization: str | None,
) -> tuple[list[Check], float, float | None]:
    """Runs the artifact on the samples in a child process and compares.

    Returns:
        The checks, the largest absolute error, and the agreement of classes (None where the first output
        has no classes).

    Raises:
        VerificationError: named "loads", "outputs", "finite", "max_abs_error" or "agreement".
    """
    try:
        outputs = run_in_child(path, samples).outputs
    except ChildFailedError as error:
        raise VerificationError("loads", str(error)) from error
    if set(outputs) != set(reference):
        raise VerificationError("outputs", f"the artifact gives {sorted(outputs)}, the model {sorted(reference)}")
    for name, value in outputs.items():
        if value.shape != reference[name].shape:
            raise VerificationError("outputs", f"{name!r} has shape {value.shape}, not {reference[name].shape}")
        if not np.isfinite(value).all():
            raise VerificationError("finite", f"output {name!r} holds NaN or infinity")
    worst = max(float(np.abs(outputs[n] - r).max()) for n, r in reference.items())
    scale = max(float(np.abs(r).max()) for r in reference.values())
    limit = TOLERANCE[quantization] * max(scale, 1e-6)
    if worst > limit:
        raise VerificationError("max_abs_error", f"outputs differ by up to {worst:.4g}, allowed are {limit:.4g}")
    checks = [Check("loads", "in a child process", ""), Check("max_abs_error", worst, limit)]
    name, expected = next(iter(reference.items()))
    if expected.ndim != 2 or expected.shape[1] < 2:
        return checks, worst, None
    same = expected.argmax(1) == outputs[name].argmax(1)
    # A row that the model itself leaves open, closer than the allowed error, may fall either way.
    best = np.sort(expected, axis=1)
    decided = best[:, -1] - best[:, -2] > limit
    agreement, least = float(same[decided].mean()) if decided.any() else 1.0, AGREEMENT[quantization]
    if agreement < least:
        raise VerificationError("agreement", f"{agreement:.1%} of the samples keep their class, not {least:.0%}")
    return [*checks, Check("agreement", agreement, least)], worst, float(same.mean())
