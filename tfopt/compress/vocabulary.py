"""A smaller vocabulary: tokens that a corpus never needs go, and their rows of the tables with them.

The tokenizer is cut along: it splits the corpus as before, and any other text still, into smaller pieces where a
piece is gone.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfopt import keras_api
from tfopt.data.tokenizers import parse_tokenizer
from tfopt.decoding.signatures import CONFIG_MEMBER
from tfopt.errors import InputError, ModelFileError
from tfopt.files import existing
from tfopt.structure.nodes import nodes
from tfopt.structure.rebuild import Changes, rebuild

_IDS = "input_ids"


@dataclasses.dataclass(frozen=True)
class CutVocabulary:
    """What is left.

    Attributes:
        model: a new model with shorter tables.
        tokenizer: content of the new `tokenizer.json`.
        kept: old ids that stay, in the order of the new ones.
    """

    model: Any
    tokenizer: bytes
    kept: np.ndarray


def cut_vocabulary(
    model: Any, tokenizer: str | Path | bytes, texts: Iterable[str], least: int = 1
) -> CutVocabulary:
    """Takes tokens out that a corpus does not use.

    Args:
        model: a built functional model of either generation with an input "input_ids"; it is not changed.
        tokenizer: a `tokenizer.json` (WordPiece or byte-level BPE), its folder, or its content.
        texts: the corpus.
        least: how often a token must occur to stay; special tokens and single characters always stay.

    Raises:
        InputError: no texts, a model whose tables are used in another way than to look ids up.
        ModelFileError: a tokenizer of another kind.
    """
    keras_api.check_model(model)
    if CONFIG_MEMBER in getattr(model, keras_api.EXTRA, {}):
        raise InputError(
            f"model {model.name!r} generates: its output has a column for every token, which must stay"
        )
    content, source = _content(tokenizer)
    table = _table(model)
    raw = json.loads(content)
    used = _counts(content, source, texts)
    old = raw["model"].get("vocab")
    if raw["model"].get("type") not in ("WordPiece", "BPE") or not isinstance(old, dict):
        raise ModelFileError(f"{source}: a vocabulary of kind {raw['model'].get('type')!r} cannot be cut")
    stay = _stay(raw, old, {i for i, count in used.items() if count >= least})
    kept = np.array(sorted(stay), np.int64)
    rows = int(table.embeddings.shape[0])
    if kept[-1] >= rows:
        raise InputError(
            f"{source} has token {kept[-1]}, the model's table {rows} rows; they do not belong together"
        )
    new_ids = {int(before): after for after, before in enumerate(kept)}
    path = next(w.path for w in keras_api.weights(model) if w.layer is table)
    made = rebuild(model, Changes({path: keras_api.to_numpy(table.embeddings)[kept]}))
    members = getattr(model, keras_api.EXTRA, {})
    if members:
        object.__setattr__(made, keras_api.EXTRA, _resized(members, len(kept)))
    return CutVocabulary(made, json.dumps(_renumbered(raw, old, new_ids), ensure_ascii=False).encode(), kept)


def _content(tokenizer: str | Path | bytes) -> tuple[str, str]:
    if isinstance(tokenizer, bytes):
        return tokenizer.decode(), "the tokenizer"
    path = existing(tokenizer, "tokenizer")
    path = existing(path / "tokenizer.json", "tokenizer") if path.is_dir() else path
    return path.read_text("utf-8"), str(path)


def _table(model: Any) -> Any:
    """The only layer that reads the ids, an Embedding with one use.

    Raises:
        InputError: there is none, or ids or table are used otherwise.
    """
    ids = next((t for t in model.inputs if str(t.name).partition(":")[0] == _IDS), None)
    if ids is None:
        raise InputError(f"model {model.name!r} has no input {_IDS!r}")
    readers = [node.operation for node in nodes(model) if id(ids) in node.inputs]
    tables = [layer for layer in readers if type(layer).__name__ == "Embedding"]
    uses = [node for node in nodes(model) if tables and node.operation is tables[0]]
    if len(tables) != 1 or len(uses) != 1:
        raise InputError(f"the ids of model {model.name!r} must be looked up in one table, once")
    return tables[0]


def _counts(content: str, source: str, texts: Iterable[str]) -> dict[int, int]:
    tokenizer, counts = parse_tokenizer(content, source), dict[int, int]()
    for encoding in tokenizer.encode_batch(list(texts)):
        for i in encoding.ids:
            counts[i] = counts.get(i, 0) + 1
    if not counts:
        raise InputError("the corpus holds no texts; give those that the model will meet")
    return counts


def _stay(raw: Mapping[str, Any], vocab: Mapping[str, int], used: set[int]) -> set[int]:
    """Used tokens, special ones, single characters, and what used ones are merged from."""
    prefix = raw["model"].get("continuing_subword_prefix") or ""
    single = {i for token, i in vocab.items() if len(token.removeprefix(prefix) if prefix else token) == 1}
    stay = used | single | {token["id"] for token in raw["added_tokens"]}
    unknown = raw["model"].get("unk_token")
    if unknown in vocab:
        stay.add(vocab[unknown])
    made_of: dict[int, list[int]] = {}
    for first, second in _merges(raw):
        made_of.setdefault(vocab[first + second], []).extend((vocab[first], vocab[second]))
    waiting = list(stay)
    while waiting:
        for part in made_of.get(waiting.pop(), ()):
            if part not in stay:
                stay.add(part)
                waiting.append(part)
    return stay


def _merges(raw: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs = [m.split(" ") if isinstance(m, str) else m for m in raw["model"].get("merges", [])]
    return [(first, second) for first, second in pairs]


def _renumbered(raw: dict[str, Any], vocab: Mapping[str, int], new: Mapping[int, int]) -> dict[str, Any]:
    """The tokenizer with new ids wherever it has some."""
    inner = {**raw["model"], "vocab": {token: new[i] for token, i in vocab.items() if i in new}}
    if "merges" in inner:
        known = inner["vocab"]
        pairs = [[a, b] for a, b in _merges(raw) if a in known and b in known and a + b in known]
        inner["merges"] = pairs
    added = [{**token, "id": new[token["id"]]} for token in raw["added_tokens"]]
    return {**raw, "model": inner, "added_tokens": added, "post_processor": _ids_in(raw["post_processor"], new)}


def _ids_in(part: Any, new: Mapping[int, int]) -> Any:
    """A post-processor with new ids: lists "ids", and pairs of a token and its id."""
    if isinstance(part, dict):
        return {key: _ids_at(key, value, new) for key, value in part.items()}
    return [_ids_in(one, new) for one in part] if isinstance(part, list) else part


def _ids_at(key: str, value: Any, new: Mapping[int, int]) -> Any:
    if key == "ids":
        return [new[i] for i in value]
    return [value[0], new[value[1]]] if key in ("sep", "cls") else _ids_in(value, new)


def _resized(members: Mapping[str, bytes], size: int) -> dict[str, bytes]:
    """What travels with a model, its vocabulary's size brought up to date."""
    found = {}
    for name, content in members.items():
        if name.endswith(".json"):
            values = json.loads(content)
            if isinstance(values, dict) and "vocab_size" in values:
                content = json.dumps({**values, "vocab_size": size}).encode()
        found[name] = content
    return found
