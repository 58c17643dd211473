"""Reads GGUF files of decoders: weights are widened to float32, the tokenizer and the ends of texts come along.

A file is seen as the Hugging Face folder that it was made from: its metadata as a `config.json`, its tensors under
their names there; what a family does in another way is in its file.
"""

import contextlib
import dataclasses
import difflib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tfopt._base.members import CHAT
from tfopt._keras import extras
from tfopt._keras.room import room_for
from tfopt.data.chat import ChatTemplate
from tfopt.data.gguf_tokenizer import tokenizer_json
from tfopt.decoding.config import CausalLMConfig
from tfopt.errors import InputError, ModelFileError
from tfopt.models.assign import assign, check_names
from tfopt.models.causal_lm import causal_lm
from tfopt.models.families import FAMILIES, Entry, Family
from tfopt.models.families.fields import check_fields
from tfopt.models.gguf_file import GgufFile

# Our family by what a GGUF file calls it.
_ARCHITECTURES = {family.gguf.architecture: name for name, family in FAMILIES.items() if family.gguf is not None}
# Name in a `config.json` -> where it stands in a GGUF file, after the name of the architecture.
_FIELDS = {
    "hidden_size": "embedding_length", "num_hidden_layers": "block_count", "num_attention_heads":
    "attention.head_count", "num_key_value_heads": "attention.head_count_kv", "head_dim": "attention.key_length",
    "intermediate_size": "feed_forward_length", "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon", "rope_theta": "rope.freq_base",
    "sliding_window": "attention.sliding_window", "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}  # fmt: skip
_ENDS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
_FACTORS, _MOST_FACTORS = "rope_freqs.weight", 1 << 14
# Numbers of layers of models whose scores are scaled by the width, which files leave unsaid.
_BY_WIDTH = {"gemma2": (46,), "gemma3": (62,)}


def read_gguf(path: str | Path, *, generation: str = "tf_keras", dropout: float | None = None) -> Any:
    """Builds the model of a GGUF file with its weights, widened to float32, and its tokenizer.

    Args:
        path: the file.
        generation: "tf_keras" or "keras".
        dropout: while training, in [0, 1).

    Raises:
        MissingFileError: no such file.
        ModelFileError: it is something else, of an unknown architecture, damaged, or its tensors or tokenizer do
            not fit what it says of itself.
    """
    with opened_gguf(path) as (config, entries, tensors, members):
        if dropout is not None:
            config = dataclasses.replace(config, dropout=dropout)
        with room_for(4 * sum(map(math.prod, tensors.shapes.values())), Path(path)):
            model = causal_lm(config, generation)
        assign(model, entries, tensors, names={name: name for name in tensors.shapes}, where=Path(path))
    for name, content in members.items():
        extras.keep(model, name, content)
    return model


class OpenedGguf(NamedTuple):
    """What a GGUF file holds; tensors are read when they are asked for."""

    config: CausalLMConfig
    entries: list[Entry]
    tensors: "_Tensors"
    members: dict[str, bytes]


@contextlib.contextmanager
def opened_gguf(path: str | Path) -> Iterator[OpenedGguf]:
    """A GGUF file of a decoder: its shape, what its tensors are, and what else travels with it.

    Raises as `read_gguf`.
    """
    with GgufFile(path) as file:
        config, family = _config(file)
        tensors = _Tensors(file, family, config)
        entries = list(family.entries(config))
        check_names({e.theirs for e in entries}, set(tensors.shapes), family.unused, where=file.path)
        members = {}
        content, template = tokenizer_json(file.metadata, config.vocab_size, where=file.path), _template(file)
        if content is not None:
            members[extras.TOKENIZERS[0]] = content
        if template is not None:
            members[CHAT] = template.to_json()
        yield OpenedGguf(config, entries, tensors, members=members)


def gguf_config(path: str | Path) -> CausalLMConfig:
    """The shape that a GGUF file describes; raises as `read_gguf`."""
    with GgufFile(path) as file:
        return _config(file)[0]


def gguf_tokenizer(path: str | Path) -> bytes | None:
    """The tokenizer of a GGUF file as a `tokenizer.json`, None for a kind that is not known.

    Raises as `read_gguf`.
    """
    with GgufFile(path) as file:
        return tokenizer_json(file.metadata, _config(file)[0].vocab_size, where=file.path)


def _template(file: GgufFile) -> ChatTemplate | None:
    text, tokens = file.metadata.get("tokenizer.chat_template"), file.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(text, str) or not isinstance(tokens, list):
        return None
    numbers = (file.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos"))
    named = [str(tokens[i]) if isinstance(i, int) and 0 <= i < len(tokens) else "" for i in numbers]
    return ChatTemplate(text, *named).compiled(str(file.path))


def _config(file: GgufFile) -> tuple[CausalLMConfig, Family]:
    kind = file.metadata.get("general.architecture")
    if not isinstance(kind, str) or kind not in _ARCHITECTURES:
        near = difflib.get_close_matches(str(kind), _ARCHITECTURES, n=3, cutoff=0.5)
        advice = f"nearest: {', '.join(near)}; " if near else ""
        raise ModelFileError(
            f"{file.path}: architecture {kind!r} is not supported; {advice}supported: {', '.join(_ARCHITECTURES)}"
        )
    family = FAMILIES[_ARCHITECTURES[kind]]
    raw = check_fields(_as_config_json(file, kind), str(file.path))
    try:
        found = family.config(raw)
        assert isinstance(found, CausalLMConfig)
    except (TypeError, KeyError, ArithmeticError, InputError) as error:
        said = f"it says nothing of {error}" if isinstance(error, KeyError) else error
        raise ModelFileError(f"{file.path}: {said}") from error
    return found, family


def _as_config_json(file: GgufFile, kind: str) -> dict[str, Any]:
    said = {ours: file.metadata.get(f"{kind}.{theirs}") for ours, theirs in _FIELDS.items()}
    raw: dict[str, Any] = {name: value for name, value in said.items() if value is not None}
    lists = [name for name, value in raw.items() if isinstance(value, list)]
    if lists:
        raise ModelFileError(f"{file.path}: {lists[0]} differs from layer to layer, which is not supported")
    table = file.shapes.get("token_embd.weight", (0,))
    ends = [file.metadata[name] for name in _ENDS if file.metadata.get(name) is not None]
    scaling = file.metadata.get(f"{kind}.rope.scaling.type")
    if not raw.get("sliding_window"):  # 0 says that there is none
        raw["sliding_window"] = None
    if kind in _BY_WIDTH and raw.get("num_hidden_layers") in _BY_WIDTH[kind] and raw.get("num_attention_heads"):
        raw["query_pre_attn_scalar"] = raw.get("hidden_size", 0) / raw["num_attention_heads"]
    if math.prod(file.shapes.get(_FACTORS, ())) > _MOST_FACTORS:
        raise ModelFileError(f"{file.path}: {_FACTORS} has shape {file.shapes[_FACTORS]}, more than half a head")
    if _FACTORS in file.shapes:
        factors = [float(f) for f in file[_FACTORS].ravel()]
        raw["rope_scaling"] = {
            "rope_type": "longrope", "short_factor": factors, "long_factor": factors, "attention_factor": 1.0
        }  # fmt: skip
    elif scaling not in (None, "none"):
        raw["rope_scaling"] = {"rope_type": scaling, "factor": file.metadata.get(f"{kind}.rope.scaling.factor")}
    turned = file.metadata.get(f"{kind}.rope.dimension_count")
    size = raw.get("head_dim") or turned
    if isinstance(turned, int) and isinstance(size, int) and 0 < turned != size > 0:
        raw["partial_rotary_factor"] = turned / size
    return {
        "model_type": _ARCHITECTURES[kind], "vocab_size": table[0], **raw, **({"head_dim": size} if size else {}),
        "eos_token_id": list(dict.fromkeys(ends)) or None,
        "tie_word_embeddings": "output.weight" not in file.shapes,
    }  # fmt: skip


class _Tensors(Mapping[str, np.ndarray]):
    """The tensors of a GGUF file by the names and with the values of a Hugging Face folder."""

    def __init__(self, file: GgufFile, family: Family, config: CausalLMConfig) -> None:
        assert family.gguf is not None
        self._file, self._layout, self._config = file, family.gguf, config
        names = {theirs: ours for ours, theirs in self._layout.names.items()}
        self._theirs = {_in_a_folder(name, names): name for name in file.shapes if name != _FACTORS}
        self.shapes = {ours: file.shapes[theirs] for ours, theirs in self._theirs.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        value = self._file[self._theirs[name]]
        return value if self._layout.folder_value is None else self._layout.folder_value(name, value, self._config)

    def __iter__(self) -> Iterator[str]:
        return iter(self._theirs)

    def __len__(self) -> int:
        return len(self._theirs)


def _in_a_folder(name: str, names: Mapping[str, str]) -> str:
    """`blk.0.attn_q.weight` -> `model.layers.0.self_attn.q_proj.weight`; what is unknown keeps its name."""
    stem, _, kind = name.rpartition(".")
    if not stem.startswith("blk."):
        return f"{names.get(stem, stem)}.{kind}"
    _, number, part = [*stem.split(".", 2), ""][:3]
    return f"{names['blk.']}{number}.{names.get(part, part)}.{kind}"
