"""A tokenizer cut to what a corpus uses: WordPiece and byte-level BPE, as `tokenizer.json` describes them."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from tfopt._base.foreign import parse_json
from tfopt.data.tokenizers import parse_tokenizer
from tfopt.errors import InputError, ModelFileError


def cut_tokenizer(content: str, source: str, texts: Iterable[str], least: int = 1) -> tuple[bytes, np.ndarray]:
    """Takes tokens out that a corpus does not use; any text can still be read.

    Args:
        content: of a `tokenizer.json`.
        source: what errors call it.
        texts: the corpus.
        least: how often a token must occur to stay; special tokens and single characters always stay.

    Returns:
        The new content, and the old ids that stay in the order of the new ones.

    Raises:
        InputError: no texts.
        ModelFileError: a tokenizer of another kind.
    """
    raw = parse_json(content, source, ModelFileError)
    used = _counts(content, source, texts)
    old = raw["model"].get("vocab")
    if raw["model"].get("type") not in ("WordPiece", "BPE") or not isinstance(old, dict):
        raise ModelFileError(f"{source}: a vocabulary of kind {raw['model'].get('type')!r} cannot be cut")
    kept = np.array(sorted(_stay(raw, old, {i for i, count in used.items() if count >= least})), np.int64)
    new_ids = {int(before): after for after, before in enumerate(kept)}
    return json.dumps(_renumbered(raw, old, new_ids), ensure_ascii=False).encode(), kept


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
