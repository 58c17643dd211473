"""What a writer of a format is given, and what it gives back."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tfopt._base.spread import ALONE, Workers
from tfopt._keras.input_facts import InputFacts
from tfopt._keras.keras_io import Inputs, call
from tfopt._keras.sizes import Size
from tfopt.export.artifact import Check
from tfopt.quantization.config import QuantizeConfig
from tfopt.tflite.layer_bits import LayerBits

Values = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What the caller of `export` asked for; see there."""

    quantization: Any
    jit_compile: bool
    lengths: Sequence[Any] | None
    batch_size: int
    cache: str
    accept: tuple[str, ...]
    allow_flex: bool = False
    workers: Workers = ALONE


@dataclasses.dataclass(frozen=True)
class Job:
    """One export.

    Attributes:
        model: a Keras model of either generation.
        inputs: of the model.
        lengths: sizes that get a signature of their own.
        facts: of the inputs.
        wanted: what was asked for.
        name: of the quantization, or None for float32.
        config: of integer quantization, or None.
        samples: inputs that the file is compared with the model on.
        given: the same where they are the caller's, None where they were drawn at random or said by the model.
        calibration: inputs to find ranges, spreads and errors on; None where there are none.
        members: what the artifact needs for texts.
    """

    model: Any
    inputs: Inputs
    lengths: tuple[Size, ...]
    facts: InputFacts
    wanted: Wanted
    name: str | None
    config: QuantizeConfig | None
    samples: Values
    given: Values | None
    calibration: Values | None
    members: Mapping[str, bytes]

    @property
    def slots(self) -> tuple[int, ...]:
        """Lengths of the caches of a file that generates."""
        return tuple(size for size in self.lengths if isinstance(size, int))

    @property
    def narrow_cache(self) -> bool:
        return self.wanted.cache == "int8"


@dataclasses.dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        expected: what the file should compute on the samples, None if just what the model does.
        checks: what was checked on the way.
        layers: the bits of every weight matrix; empty for float files.
    """

    expected: Values | None = None
    checks: tuple[Check, ...] = ()
    layers: tuple[LayerBits, ...] = ()


class Writer(Protocol):
    """What the module of a format in this folder has."""

    def lengths(
        self, model: Any, inputs: Inputs, wanted: Wanted, masks: Mapping[str, Any]
    ) -> tuple[tuple[Size, ...], Size]:
        """The sizes to write, and that of the samples that the file is compared on.

        Raises:
            InputError: what is wanted does not fit the model.
        """

    def write(self, job: Job, path: Path) -> Written:
        """Writes the file or folder."""

    def check(self, path: Path, name: str | None, jit_compile: bool) -> list[Check]:
        """Compares what is inside with what was asked for: the quantization of that name, compiled by XLA or not.

        Raises:
            VerificationError: it is something else; the check is named.
        """


def outputs_of(job: Job) -> Values:
    """What the model computes on the samples, as it is now."""
    return {name: value.numpy() for name, value in call(job.model, job.inputs, job.samples).items()}
