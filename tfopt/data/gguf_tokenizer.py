"""Tokenizers of GGUF files as a `tokenizer.json`.

Two kinds: byte-level BPE with merges (GPT-2 and its like; how texts are cut into words first is a name in the
file), and BPE by scores over SentencePiece's pieces (LLaMA 2, Gemma). Names stand for what llama.cpp does.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tfopt.data.tokenizers import parse_tokenizer
from tfopt.errors import ModelFileError

_log = logging.getLogger("tfopt")
_CONTROL, _USER = 3, 4  # types of tokens
_SPACE = "▁"
# Words of texts, by the name of who cuts so.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
_WORDS: dict[str, dict[str, Any]] = {
    "gpt-2": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "digits": {"type": "Digits", "individual_digits": True},
    "llama3": {"type": "Split", "pattern": {"Regex": _LLAMA3}, "behavior": "Isolated", "invert": False},
    "qwen2": {
        "type": "Split", "pattern": {"Regex": _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")}, "behavior": "Isolated",
        "invert": False,
    },
    "bytes": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
}  # fmt: skip
# How words are cut, one after the other, by the name in the file.
_CUT_BY = {
    "gpt-2": ("gpt-2",), "smollm": ("digits", "gpt-2"), "starcoder": ("digits", "gpt-2"),
    "refact": ("digits", "gpt-2"), "codeshell": ("digits", "gpt-2"), "llama-bpe": ("llama3", "bytes"),
    "llama3": ("llama3", "bytes"), "llama-v3": ("llama3", "bytes"), "smaug-bpe": ("llama3", "bytes"),
    "dbrx": ("llama3", "bytes"), "qwen2": ("qwen2", "bytes"), "stablelm2": ("qwen2", "bytes"),
}  # fmt: skip
_LONGEST = 512  # characters of a piece, all of whose halves are looked at
_BEGUN = ("llama-bpe", "llama3", "llama-v3")  # by a token, if the file does not say otherwise


def tokenizer_json(metadata: Mapping[str, Any], vocab_size: int, *, where: str | Path) -> bytes | None:
    """The `tokenizer.json` of a GGUF file.

    Args:
        metadata: of the file.
        vocab_size: rows of the model's table.
        where: the file, for messages.

    Returns:
        None, with a warning, for a kind that is not known here: the model then takes token ids only.

    Raises:
        ModelFileError: it is damaged, or has another number of tokens than the table has rows.
    """
    kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "gpt-2")
    if kind is None or kind == "none":
        return None
    if kind not in ("gpt2", "llama") or (kind == "gpt2" and str(pre) not in _CUT_BY):
        named = f"{kind!r}" if kind != "gpt2" else f"'gpt2' with words cut as {pre!r}"
        _log.warning("%s has a tokenizer of kind %s, which is not known: it takes token ids only", where, named)
        return None
    tokens = _texts(metadata, "tokens", where)
    if len(tokens) != vocab_size:
        raise ModelFileError(f"{where} has {len(tokens):,} tokens, its table {vocab_size:,} rows")
    if len(set(tokens)) != len(tokens):
        raise ModelFileError(f"{where} has a token twice")
    types = metadata.get("tokenizer.ggml.token_type", [1] * len(tokens))
    if not isinstance(types, list) or len(types) != len(tokens):
        raise ModelFileError(f"{where}: tokenizer.ggml.token_type must be {len(tokens)} numbers")
    found = (
        _byte_level(metadata, tokens, str(pre), where=where) if kind == "gpt2" else _pieces(metadata, tokens, where)
    )
    content = json.dumps({
        "version": "1.0", "truncation": None, "padding": None, **found,
        "added_tokens": _added(tokens, types), "post_processor": _around(metadata, tokens, kind, where=where),
    }, ensure_ascii=False)  # fmt: skip
    parse_tokenizer(content, f"the tokenizer of {where}")
    return content.encode()


def _byte_level(metadata: Mapping[str, Any], tokens: list[str], pre: str, where: str | Path) -> dict[str, Any]:
    merges = [text.split(" ") for text in _texts(metadata, "merges", where)]
    wrong = next((pair for pair in merges if len(pair) != 2), None)
    if wrong is not None:
        raise ModelFileError(f"{where}: tokenizer.ggml.merges must be pairs, got {' '.join(wrong)!r:.80}")
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [_WORDS[name] for name in _CUT_BY[pre]]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": _bpe(tokens, merges, ignore_merges=_CUT_BY[pre][0] == "llama3"),
    }  # fmt: skip


def _pieces(metadata: Mapping[str, Any], tokens: list[str], where: str | Path) -> dict[str, Any]:
    """SentencePiece's BPE joins the pair whose piece has the highest score; `tokenizers` wants a list of pairs."""
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens) or not all(isinstance(s, float) for s in scores):
        raise ModelFileError(f"{where}: tokenizer.ggml.scores must be {len(tokens)} numbers")
    longest = max(map(len, tokens))
    if longest > _LONGEST:
        raise ModelFileError(f"{where} has a token of {longest:,} characters, {_LONGEST} are the most")
    number = {token: i for i, token in enumerate(tokens)}
    pairs = [
        (scores[i], token[:at], token[at:])
        for i, token in enumerate(tokens)
        for at in range(1, len(token))
        if token[:at] in number and token[at:] in number
    ]
    pairs.sort(key=lambda pair: (-pair[0], number[pair[1]], number[pair[2]]))
    prefixed = metadata.get("tokenizer.ggml.add_space_prefix", True)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    prepend = [{"type": "Prepend", "prepend": _SPACE}] if prefixed else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefixed else []
    unknown = metadata.get("tokenizer.ggml.unknown_token_id")
    word = tokens[unknown] if isinstance(unknown, int) and 0 <= unknown < len(tokens) else None
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, replace]}, "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, *strip,
        ]},
        "model": {
            **_bpe(tokens, [[first, second] for _, first, second in pairs]), "byte_fallback": True,
            "fuse_unk": True, "unk_token": word,
        },
    }  # fmt: skip


def _bpe(tokens: Sequence[str], merges: list[list[str]], ignore_merges: bool = False) -> dict[str, Any]:
    return {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": ignore_merges,
        "vocab": {token: i for i, token in enumerate(tokens)}, "merges": merges,
    }  # fmt: skip


def _added(tokens: list[str], types: list[Any]) -> list[dict[str, Any]]:
    """Tokens that are found in a text before it is cut."""
    return [
        {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": kind == _CONTROL}
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True)) if kind in (_CONTROL, _USER)
    ]  # fmt: skip


def _around(
    metadata: Mapping[str, Any], tokens: list[str], kind: str, *, where: str | Path
) -> dict[str, Any] | None:
    """The token that begins every text, if there is one."""
    begins = metadata.get("tokenizer.ggml.pre") in _BEGUN or kind == "llama"
    if not metadata.get("tokenizer.ggml.add_bos_token", begins):
        return None
    number = metadata.get("tokenizer.ggml.bos_token_id")
    if not isinstance(number, int) or not 0 <= number < len(tokens):
        raise ModelFileError(f"{where}: tokenizer.ggml.bos_token_id must be a token, got {number!r}")
    first = {"SpecialToken": {"id": tokens[number], "type_id": 0}}
    return {
        "type": "TemplateProcessing", "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [first, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {tokens[number]: {"id": tokens[number], "ids": [number], "tokens": [tokens[number]]}},
    }  # fmt: skip


def _texts(metadata: Mapping[str, Any], name: str, where: str | Path) -> list[str]:
    found = metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(found, list) or not found or not all(isinstance(text, str) for text in found):
        raise ModelFileError(f"{where}: tokenizer.ggml.{name} must be a list of texts")
    return found
