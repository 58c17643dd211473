"""Checks a written artifact against the model it came from.

The artifact is loaded and run in a child process, and its outputs are compared with the Keras model's. Every check
has a name and a stated limit. What is inside a file is checked by the module that writes it.
"""

from pathlib import Path

import numpy as np

from tfopt._base.children import ChildFailedError
from tfopt.errors import VerificationError
from tfopt.export.artifact import Check
from tfopt.runtime.child import try_in_child

# Largest difference of an output as a share of the largest output of the Keras model.
_TOLERANCE = {None: 1e-3, "float16": 2e-2}
_QUANTIZED_TOLERANCE = 0.25
# Share of the samples that must get the class that the Keras model gives them.
_AGREEMENT = {None: 1.0, "float16": 0.99}
_QUANTIZED_AGREEMENT = 0.95


def check_outputs(
    path: Path,
    samples: dict[str, np.ndarray],
    *,
    reference: dict[str, np.ndarray],
    quantization: str | None,
    compare_classes: bool = True,
    static: bool = False,
    limit: float | None = None,
) -> tuple[dict[str, np.ndarray], list[Check], float | None]:
    """Runs the artifact on the samples in a child process and compares.

    Args:
        path: the artifact.
        samples: inputs by name.
        reference: what the Keras model gives on them, rounded as the artifact should be.
        quantization: decides the limits.
        compare_classes: also compare which output is largest; only sensible on real samples.
        static: the artifact has integer activations, where a rounding that falls the other way may change single
            samples a lot; the error is then the root of the mean square instead of the largest.
        limit: largest error that is accepted, instead of the one that goes with `quantization`.

    Returns:
        The artifact's outputs, the checks, and the share of rows that keep their class (None where that was
        not compared).

    Raises:
        VerificationError: named "loads", "outputs", "finite", "max_abs_error", "rms_error" or "agreement".
    """
    try:
        outputs = try_in_child(path, samples).outputs
    except ChildFailedError as error:
        raise VerificationError("loads", str(error)) from error
    if set(outputs) != set(reference):
        raise VerificationError("outputs", f"the artifact gives {sorted(outputs)}, the model {sorted(reference)}")
    checks = [Check("loads", "in a child process", "")]
    for name, expected in reference.items():
        measure = "rms_error" if static else "max_abs_error"
        share = _TOLERANCE.get(quantization, _QUANTIZED_TOLERANCE)
        allowed = limit if limit is not None else share * max(float(np.abs(expected).max()), 1e-6)
        off = _compare(name, outputs[name], expected, measure=measure, limit=allowed)
        checks.append(Check(measure if len(reference) == 1 else f"{measure} of {name}", off, allowed))
    agreement = None
    name, expected = next(iter(reference.items()))
    if compare_classes and expected.ndim == 2 and expected.shape[1] > 1:
        agreement, least = (
            class_agreement(outputs[name], expected),
            _AGREEMENT.get(quantization, _QUANTIZED_AGREEMENT),
        )
        # Of a few samples, one may fall either way.
        if round((1 - agreement) * len(expected)) > max(1, (1 - least) * len(expected)):
            kept = f"{agreement:.1%} of the samples keep their class, not {least:.0%}"
            raise VerificationError("agreement", kept)
        checks.append(Check("agreement", agreement, least))
    return outputs, checks, agreement


def largest_error(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """Largest absolute difference over all outputs."""
    return max(float(np.abs(found[name] - value).max()) for name, value in expected.items())


def class_agreement(found: np.ndarray, expected: np.ndarray) -> float:
    """Share of rows whose largest value stands in the same column; exact ties count as kept."""
    chosen = np.take_along_axis(expected, found.argmax(1)[:, None], 1)[:, 0]
    return float((chosen >= expected.max(1) - 1e-6 * np.abs(expected).max()).mean())


def _compare(name: str, found: np.ndarray, expected: np.ndarray, measure: str, limit: float) -> float:
    """The error of one output, which must not be above its limit."""
    if not np.isfinite(expected).all():
        raise VerificationError("finite", f"the model itself gives NaN or infinity in output {name!r}")
    if found.shape != expected.shape:
        raise VerificationError("outputs", f"{name!r} has shape {found.shape}, not {expected.shape}")
    if not np.isfinite(found).all():
        raise VerificationError("finite", f"output {name!r} holds NaN or infinity")
    difference = found.astype(np.float64) - expected
    error = float(np.sqrt((difference**2).mean()) if measure == "rms_error" else np.abs(difference).max())
    if not error <= limit:  # an error that is no number is above every limit
        raise VerificationError(measure, f"output {name!r} differs by {error:.4g}, allowed are {limit:.4g}")
    return error
