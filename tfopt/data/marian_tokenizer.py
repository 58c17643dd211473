"""Marian's tokenizer as a `tokenizer.json`: SentencePiece's pieces, whose numbers stand in a file of their own.

Translators of OPUS-MT come with the pieces of their two languages in two files, and one vocabulary of both. What is
cut are sources; answers are joined from pieces of the vocabulary. Characters that the source's pieces lack are
found in the vocabulary one by one, where the original looks for several in a row as one.
"""

import base64
import json
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfopt._base.foreign import read_bytes, read_json
from tfopt._base.limits import MAX_MEMBER_BYTES
from tfopt.data.sentencepiece_file import BYTE, NORMAL, UNIGRAM, USER_DEFINED, parse_pieces
from tfopt.data.tokenizers import parse_tokenizer
from tfopt.errors import ModelFileError

_log = logging.getLogger("tfopt")
FILES = ("source.spm", "vocab.json")
_SPACE, _UNKNOWN, _END = "▁", "<unk>", "</s>"
_LANGUAGE = re.compile(r">>.+<<")
# SentencePiece's own penalty of a character that no piece has; single ones of the other language are found like it.
_PENALTY = 10.0
# Below the worst of all: what has pieces in the source's file is never cut into the other language's.
_NEVER = 1000.0


def marian_tokenizer(folder: Path, vocab_size: int) -> bytes | None:
    """The `tokenizer.json` of a folder that has SentencePiece's files instead.

    Args:
        folder: of a translator.
        vocab_size: rows of the model's table.

    Returns:
        None, with a warning, for pieces that were found otherwise than by their chances: the model then takes token
        ids only.

    Raises:
        ModelFileError: a file is damaged, or the vocabulary does not fit the table.
    """
    vocab = _vocabulary(folder / FILES[1], vocab_size)
    path = folder / FILES[0]
    pieces = parse_pieces(read_bytes(path, "pieces", most=MAX_MEMBER_BYTES, error=ModelFileError), str(path))
    kinds = {piece.type for piece in pieces.pieces}
    if pieces.trainer_spec.model_type != UNIGRAM or kinds & {BYTE, USER_DEFINED}:
        _log.warning(
            "%s has other pieces than those of unigrams, which alone are known: it takes token ids only", path
        )
        return None
    scores = {piece.piece: piece.score for piece in pieces.pieces if piece.type == NORMAL}
    if not scores or not all(isinstance(name, str) and math.isfinite(score) for name, score in scores.items()):
        raise ModelFileError(f"{path} must hold pieces of texts, each with a score")
    content = json.dumps(_described(pieces.normalizer_spec, vocab, scores), ensure_ascii=False)
    parse_tokenizer(content, str(path))
    return content.encode()


def _vocabulary(path: Path, vocab_size: int) -> list[str]:
    """Pieces in the order of their numbers."""
    raw = read_json(path, "vocabulary", error=ModelFileError)
    whole = isinstance(raw, dict) and all(type(number) is int for number in raw.values())
    if not whole or sorted(raw.values()) != list(range(len(raw))):
        raise ModelFileError(f"{path} must map pieces to the numbers from 0 on, each once")
    if len(raw) > vocab_size:
        raise ModelFileError(f"{path} has {len(raw):,} pieces, the model's table {vocab_size:,} rows")
    missing = [name for name in (_UNKNOWN, _END) if name not in raw]
    if missing:
        raise ModelFileError(f"{path} lacks {missing[0]!r}")
    return sorted(raw, key=lambda piece: int(raw[piece]))


def _described(normalizer: Any, vocab: list[str], scores: Mapping[str, float]) -> dict[str, Any]:
    worst = min(scores.values())

    def score(piece: str) -> float:
        return float(scores.get(piece, worst - _PENALTY if len(piece) == 1 else worst - _NEVER))

    special = [name for name in vocab if name in (_UNKNOWN, _END, "<pad>") or _LANGUAGE.fullmatch(name)]
    steps: list[dict[str, Any]] = []
    if normalizer.precompiled_charsmap:
        charsmap = base64.b64encode(normalizer.precompiled_charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if normalizer.remove_extra_whitespaces:
        steps += [
            {"type": "Strip", "strip_left": True, "strip_right": True},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
        ]
    metaspace = {
        "type": "Metaspace", "replacement": _SPACE, "split": False,
        "prepend_scheme": "always" if normalizer.add_dummy_prefix else "never",
    }  # fmt: skip
    end = {"id": _END, "ids": [vocab.index(_END)], "tokens": [_END]}
    sequence = {"Sequence": {"id": "A", "type_id": 0}}
    closed = [sequence, {"SpecialToken": {"id": _END, "type_id": 0}}]
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{
            "id": vocab.index(name), "content": name, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": not _LANGUAGE.fullmatch(name),
        } for name in special],
        "normalizer": {"type": "Sequence", "normalizers": steps} if steps else None,
        "pre_tokenizer": metaspace, "decoder": metaspace,
        "post_processor": {
            "type": "TemplateProcessing", "single": closed, "special_tokens": {_END: end},
            "pair": [sequence, {"Sequence": {"id": "B", "type_id": 0}}, closed[1]],
        },
        "model": {
            "type": "Unigram", "unk_id": vocab.index(_UNKNOWN), "vocab": [[piece, score(piece)] for piece in vocab],
            "byte_fallback": False,
        },
    }  # fmt: skip
