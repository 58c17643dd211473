"""What a family of public checkpoints is: its `config.json`, its tensor names, and ours.

One `Entry` says how one stored tensor becomes weights of ours and back.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from tfopt.decoding.config import CausalLMConfig
from tfopt.errors import InputError
from tfopt.models.bert import BertConfig

Config = BertConfig | CausalLMConfig
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
    """

    theirs: str
    ours: tuple[str, ...]
    transpose: bool = False

    def read(self, stored: np.ndarray) -> dict[str, np.ndarray]:
        """Our weights from the stored tensor."""
        value = stored.T if self.transpose else stored
        parts = np.split(value, len(self.ours), -1) if len(self.ours) > 1 else [value]
        return dict(zip(self.ours, parts, strict=True))

    def write(self, weights: Mapping[str, np.ndarray]) -> np.ndarray:
        """The stored tensor from our weights."""
        joined = np.concatenate([weights[path] for path in self.ours], -1)
        return np.ascontiguousarray(joined.T if self.transpose else joined)

    def shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        """Shape of the stored tensor."""
        first = shapes[self.ours[0]]
        joined = (*first[:-1], sum(shapes[path][-1] for path in self.ours))
        return joined[::-1] if self.transpose else joined


@dataclasses.dataclass(frozen=True)
class Family:
    """One `model_type` of `config.json`: a family of public checkpoints.

    Attributes:
        prefixes: that tensor names may have; the first is the one that we write.
        config: `config.json` -> our configuration.
        write_config: our configuration -> `config.json`.
        entries: tensors of a configuration.
        unused: beginnings of names that checkpoints carry and our models do not need.
    """

    prefixes: tuple[str, ...]
    config: Callable[[Mapping[str, Any]], Config]
    write_config: Callable[[Any], dict[str, Any]]
    entries: Callable[[Any], Iterator[Entry]]
    unused: tuple[str, ...] = ()


def dense_entries(theirs: str, ours: str, bias: bool = True) -> Iterator[Entry]:
    """A dense layer whose stored matrix has outputs first."""
    yield Entry(f"{theirs}.weight", (f"{ours}/kernel",), True)
    if bias:
        yield Entry(f"{theirs}.bias", (f"{ours}/bias",))


def norm_entries(theirs: str, ours: str, bias: bool = True) -> Iterator[Entry]:
    """A norm."""
    yield Entry(f"{theirs}.weight", (f"{ours}/gamma",))
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
