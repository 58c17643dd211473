"""Checkpoints of decoders whose weights are read one at a time, when they are asked for."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfopt._base.formats import kind_of
from tfopt._base.members import CHAT
from tfopt._keras import extras
from tfopt.data.chat import template_of_folder
from tfopt.decoding.config import CausalLMConfig
from tfopt.decoding.shapes import weight_shapes
from tfopt.errors import InputError
from tfopt.models.assign import Stored, check_names, check_shapes
from tfopt.models.checkpoints import opened
from tfopt.models.families.base import Entry
from tfopt.models.gguf import opened_gguf
from tfopt.models.pretrained import read_family, stored_names_of, tokenizer_of_folder


class StreamedWeights(Mapping[str, np.ndarray]):
    """Weights by path as float32, as a model of `models.causal_lm` has them; nothing is kept.

    Attributes:
        config: shape of the model.
        shapes: shape by path.
        members: what travels with the model: its shape, tokenizer and chat template.
    """

    def __init__(
        self, config: CausalLMConfig, entries: list[Entry], tensors: Stored, names: Mapping[str, str],
        members: Mapping[str, bytes],
    ) -> None:  # fmt: skip
        self.config, self.members = config, {extras.CONFIG: config.to_json(), **members}
        self.shapes = weight_shapes(config)
        self._tensors, self._names = tensors, names
        self._entries = {path: entry for entry in entries for path in entry.ours}

    def __getitem__(self, path: str) -> np.ndarray:
        entry = self._entries[path]
        return entry.read(self._tensors[self._names[entry.theirs]], self.shapes)[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def __contains__(self, path: object) -> bool:  # without reading it, as a mapping would
        return path in self.shapes


@contextlib.contextmanager
def streamed(path: str | Path) -> Iterator[StreamedWeights]:
    """The weights of a decoder in a Hugging Face folder or a GGUF file.

    Raises:
        MissingFileError: nothing is there.
        ModelFileError: it is damaged, or its tensors do not fit what it says of itself.
        InputError: it holds something else than a decoder.
    """
    path, kind = Path(path), kind_of(path)
    if kind == "gguf":
        with opened_gguf(path) as file:
            names = {name: name for name in file.tensors.shapes}
            yield _checked(path, file.config, file.entries, tensors=file.tensors, names=names, members=file.members)
        return
    if kind != "hugging_face":
        raise InputError(f"weights are streamed out of a Hugging Face folder or a .gguf file, got {path}")
    config, family = read_family(path)
    if not isinstance(config, CausalLMConfig):
        raise InputError(f"weights are streamed for models that generate without an encoder; {path} holds another")
    members = {}
    if (path / "tokenizer.json").exists():
        members[extras.TOKENIZERS[0]] = tokenizer_of_folder(path)
    template = template_of_folder(path)
    if template is not None:
        members[CHAT] = template.to_json()
    with opened(path) as tensors:
        names, entries = stored_names_of(tensors, family), list(family.entries(config))
        check_names({e.theirs for e in entries}, set(names), family.unused, where=path)
        yield _checked(path, config, entries, tensors=tensors, names=names, members=members)


def _checked(
    path: Path, config: CausalLMConfig, entries: list[Entry], tensors: Any, names: Mapping[str, str],
    members: Mapping[str, bytes],
) -> StreamedWeights:  # fmt: skip
    found = StreamedWeights(config, entries, tensors, names=names, members=members)
    check_shapes(entries, tensors, found.shapes, names=names, where=path)
    return found
