"""Tokenizers: loaded from a folder, or trained (byte-level BPE) on the texts at hand."""

import base64
import dataclasses
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tfopt._base.files import existing, replacing
from tfopt._base.foreign import read_text
from tfopt._base.limits import MAX_MEMBER_BYTES
from tfopt.data.sentencepiece_file import check_charsmap
from tfopt.errors import DataError, InputError, ModelFileError

SPECIAL_TOKENS = ("[PAD]", "[CLS]", "[SEP]")
_CHARSMAP = "precompiled_charsmap"
OnLong = Literal["error", "truncate", "drop"]


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Token ids of many texts.

    Attributes:
        tokens: all ids one after another, int64.
        lengths: tokens of each kept text, int64.
        kept: index of each kept text in the input, int64.
        too_long: texts that had more tokens than allowed.
        longest: tokens of the longest text before anything was cut.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    kept: np.ndarray
    too_long: int
    longest: int


def load_tokenizer(path: str | Path) -> Any:
    """Loads `tokenizer.json` (a file, or a folder that holds it) with its own cutting and padding off.

    Raises:
        MissingFileError: no such file.
        ModelFileError: the file is not a tokenizer.
    """
    path = existing(path, "tokenizer")
    if path.is_dir():
        path = existing(path / "tokenizer.json", "tokenizer")
    content = read_text(path, "tokenizer", most=MAX_MEMBER_BYTES, error=ModelFileError)
    return parse_tokenizer(content, str(path))


def parse_tokenizer(content: str, source: str) -> Any:
    """The tokenizer that the content of a `tokenizer.json` describes, with its own cutting and padding off.

    Raises:
        ModelFileError: it is something else; `source` names it.
    """
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_str(content)
    except BaseException as error:
        # A panic of Rust is no Exception; being interrupted is none of the file's.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ModelFileError(f"{source} is not a tokenizer: {error}") from error
    for charsmap in _charsmaps(content):
        check_charsmap(charsmap, source)
    # Published files often cut silently; here `encode` counts what is too long.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _charsmaps(content: str) -> list[bytes]:
    """Tables of replaced characters, of a tokenizer that was read already."""
    if _CHARSMAP not in content:
        return []
    found: list[bytes] = []

    def note(described: dict[str, Any]) -> dict[str, Any]:
        if isinstance(described.get(_CHARSMAP), str):
            found.append(base64.b64decode(described[_CHARSMAP]))
        return described

    json.loads(content, object_hook=note)
    return found


def train_bpe(texts: Iterable[str], vocab_size: int, end_of_text: str | None = None) -> Any:
    """Trains a byte-level BPE tokenizer that puts [CLS] before and [SEP] after each text.

    Args:
        texts: training texts.
        vocab_size: rows of the vocabulary, at least 260 (256 bytes and the special tokens).
        end_of_text: for running text: the only special token, which stands for the end of a document; nothing is
            put around a text then, and its blanks stay as they are.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    if vocab_size < 256 + len(SPECIAL_TOKENS) + 1:
        raise InputError(f"vocab_size must be 260 or more, got {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=end_of_text is None)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS) if end_of_text is None else [end_of_text],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if end_of_text is not None:
        return tokenizer
    start, end = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", start), ("[SEP]", end)],
    )
    return tokenizer


def noise_ids(tokenizer: Any) -> tuple[list[int], tuple[int, ...]]:
    """Ids that may take a token's place as noise, and those whose place nothing may take.

    What stands for a mask or an unknown token where there is one, else any that is not special.
    """
    added = tokenizer.get_added_tokens_decoder()
    kept = tuple(sorted(number for number, token in added.items() if token.special))
    for name in ("[MASK]", "<mask>", "[UNK]", "<unk>"):
        found = tokenizer.token_to_id(name)
        if found is not None:
            return [int(found)], kept
    return sorted(set(range(tokenizer.get_vocab_size())) - set(kept)), kept


def save_tokenizer(tokenizer: Any, path: str | Path) -> None:
    """Writes `tokenizer.json`."""
    with replacing(path) as temporary:
        tokenizer.save(str(temporary))


def encode(
    tokenizer: Any,
    texts: Sequence[str],
    max_length: int,
    on_long: OnLong = "error",
    source: str = "texts",
    some: bool = True,
) -> Encoded:
    """Token ids of the texts, with what the tokenizer adds at both ends.

    Args:
        tokenizer: from `load_tokenizer` or `train_bpe`.
        texts: the texts.
        max_length: most tokens that the model takes.
        on_long: what happens to longer texts: "error", "truncate" (the end is cut, the last special
            token stays) or "drop".
        source: name of the texts in messages.
        some: whether it is an error that nothing is left.

    Raises:
        DataError: texts are too long and `on_long` is "error", or nothing is left.
    """
    try:
        encodings = tokenizer.encode_batch_fast(list(texts))  # without the offsets of tokens in the text
    except TypeError as error:
        half = next((text for text in texts if text.encode("utf-8", "replace").decode() != text), None)
        if half is None:
            raise
        raise DataError(
            f"{source}: a text holds half a character, which UTF-8 cannot store: {half[:80]!r}"
        ) from error
    full = [e.ids for e in encodings]
    lengths = np.fromiter(map(len, full), np.int64, len(full))
    longest = int(lengths.max(initial=0))
    if max_length < 1:
        raise InputError(f"max_length must be 1 or more, got {max_length}")
    if not lengths.all():
        raise DataError(f"{source}: the text {list(texts)[int(lengths.argmin())][:80]!r} has no tokens; remove it")
    over = lengths > max_length
    if over.any() and on_long == "error":
        raise DataError(
            f"{source}: {int(over.sum())} of {len(full)} texts are longer than the {max_length} tokens the "
            f"model takes (the longest has {longest}); set data.on_long to 'truncate' or 'drop', or raise "
            "data.max_length"
        )
    if on_long == "truncate":
        for index in np.flatnonzero(over):
            full[index] = cut_ids(encodings[index], max_length)
    kept = np.flatnonzero(~over) if on_long == "drop" else np.arange(len(full))
    if not kept.size and some:
        raise DataError(f"{source}: no text has {max_length} tokens or fewer")
    rows = full if on_long != "drop" else [full[i] for i in kept]
    tokens = np.fromiter(itertools.chain.from_iterable(rows), np.int64)
    return Encoded(tokens, np.minimum(lengths[kept], max_length), kept, too_long=int(over.sum()), longest=longest)


def types_of(encoding: Any) -> list[int]:
    """For each token 1 if it belongs to the second text of a pair, else 0; some tokenizers tell no types."""
    types = list(encoding.type_ids)
    return types if any(types) else [int(which == 1) for which in encoding.sequence_ids]


def cut_ids(encoding: Any, max_length: int) -> list[int]:
    """The first `max_length` ids, the special tokens that close the text kept at the end."""
    closing = 0
    mask = encoding.special_tokens_mask
    while closing < len(mask) and mask[-1 - closing] and closing < max_length - 1:
        closing += 1
    ids = list(encoding.ids)
    return ids[: max_length - closing] + (ids[len(ids) - closing :] if closing else [])
