"""What a family of public checkpoints is: its `config.json`, its tensor names, and ours.

One `Entry` says how one stored tensor becomes weights of ours and back.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from tfopt.decoding.config import CausalLMConfig
from tfopt.decoding.seq2seq_config import Seq2SeqConfig
from tfopt.errors import InputError
from tfopt.models.encoder import EncoderConfig

Config = EncoderConfig | CausalLMConfig | Seq2SeqConfig
# Beginnings of the names of heads, which encoders of any family may carry.
HEADS = ("pooler.", "cls.", "classifier.", "embeddings.position_ids", "lm_head.", "vocab_", "pre_classifier.",
          "qa_outputs.")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Entry:
    """One stored tensor.

    Attributes:
        theirs: its name, without the prefix that some checkpoints have.
        ours: paths of our weights; several lie side by side along the last axis of the stored tensor.
        transpose: outputs come first in the stored matrix.
        offset: what the stored tensor is less than ours.
        row: the stored tensor is a matrix of one row, ours a vector.
    """

    theirs: str
    ours: tuple[str, ...]
    transpose: bool = False
    offset: float = 0.0
    row: bool = False

    def read(self, stored: np.ndarray, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
        """Our weights, of these shapes, from the stored tensor."""
        value = (stored.T if self.transpose else stored[0] if self.row else stored) + np.float32(self.offset)
        ends = np.cumsum([shapes[path][-1] for path in self.ours])
        return dict(zip(self.ours, np.split(value, ends[:-1], -1), strict=True))

    def write(self, weights: Mapping[str, np.ndarray]) -> np.ndarray:
        """The stored tensor from our weights."""
        joined = np.concatenate([weights[path] for path in self.ours], -1) - np.float32(self.offset)
        return np.ascontiguousarray(joined.T if self.transpose else joined[None] if self.row else joined)

    def shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        """Shape of the stored tensor."""
        first = shapes[self.ours[0]]
        joined = (*first[:-1], sum(shapes[path][-1] for path in self.ours))
        return joined[::-1] if self.transpose else (1, *joined) if self.row else joined


@dataclasses.dataclass(frozen=True)
class Gguf:
    """How GGUF files hold a family.

    Attributes:
        architecture: what they call it.
        names: part of a name in a Hugging Face folder -> the part of GGUF's that stands for it.
        folder_value: (name in a folder, value, configuration) -> the value as a folder stores it; None where both
            are the same.
    """

    architecture: str
    names: Mapping[str, str]
    folder_value: Callable[[str, np.ndarray, Any], np.ndarray] | None = None


@dataclasses.dataclass(frozen=True)
class Family:
    """One `model_type` of `config.json`: a family of public checkpoints.

    Attributes:
        prefixes: that tensor names may have; the first is the one that we write.
        config: `config.json` -> our configuration.
        write_config: our configuration -> `config.json`.
        entries: tensors of a configuration.
        unused: beginnings of names that checkpoints carry and our models do not need.
        gguf: how GGUF files hold it, None if none do.
    """

    prefixes: tuple[str, ...]
    config: Callable[[Mapping[str, Any]], Config]
    write_config: Callable[[Any], dict[str, Any]]
    entries: Callable[[Any], Iterator[Entry]]
    unused: tuple[str, ...] = ()
    gguf: Gguf | None = None


def dense_entries(theirs: str, ours: str, bias: bool = True) -> Iterator[Entry]:
    """A dense layer whose stored matrix has outputs first."""
    yield Entry(f"{theirs}.weight", (f"{ours}/kernel",), True)
    if bias:
        yield Entry(f"{theirs}.bias", (f"{ours}/bias",))


def norm_entries(theirs: str, ours: str, bias: bool = True, offset: float = 0.0) -> Iterator[Entry]:
    """A norm, whose stored scale may be less than ours by an offset."""
    yield Entry(f"{theirs}.weight", (f"{ours}/gamma",), offset=offset)
    if bias:
        yield Entry(f"{theirs}.bias", (f"{ours}/beta",))


def known(table: Mapping[str, str], name: Any) -> str:
    """Our name of an activation.

    Raises:
        InputError: there is none.
    """
    if name not in table:
        raise InputError(f"activation {name!r} is not supported; supported: {', '.join(table)}")
    return table[name]
