"""What an export gives back."""

import dataclasses
import html
from pathlib import Path

from tfopt.tflite.layer_bits import LayerBits


@dataclasses.dataclass(frozen=True)
class Check:
    """One check that an artifact passed.

    Attributes:
        name: of the check.
        found: what was found.
        limit: that it had to keep.
        accepted: it did not keep it, and the caller had said that this is accepted.
    """

    name: str
    found: float | str
    limit: float | str
    accepted: bool = False


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A verified file or folder.

    Attributes:
        path: the `.tflite` file or the SavedModel folder.
        format: "saved_model" or "tflite".
        quantization: None, "float16", a name as in `quantization.NAMED`, or "custom".
        jit_compile: whether the saved function compiles with XLA when it is loaded.
        lengths: sizes that have a signature of their own, as numbers or by input; empty if the model has no open
            axis or takes any size.
        max_abs_error: largest difference from the Keras model on the verification samples; NaN of a file that no
            runtime here takes.
        agreement: share of samples whose largest output is the same class as the Keras model's.
        checks: every check that was made.
        layers: the bits of every weight matrix, with the reason where it stayed in float; empty for
            files without integer weights.
    """

    path: Path
    format: str
    quantization: str | None
    jit_compile: bool
    lengths: tuple[int | dict[str, tuple[int, ...]], ...]
    max_abs_error: float
    agreement: float | None
    checks: tuple[Check, ...] = dataclasses.field(repr=False)
    layers: tuple[LayerBits, ...] = dataclasses.field(default=(), repr=False)

    def _repr_html_(self) -> str:
        head = "<tr><th>check</th><th>found</th><th>limit</th></tr>"
        rows = [
            f"<tr><td>{html.escape(check.name)}</td><td>{html.escape(_shown(check.found))}</td>"
            f"<td>{html.escape(_shown(check.limit))}{' (accepted)' if check.accepted else ''}</td></tr>"
            for check in self.checks
        ]
        return f"<p>{html.escape(str(self.path))}</p><table>{head}{''.join(rows)}</table>"


def _shown(value: float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else value
