"""Running text as windows of tokens, for models that predict the next one."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt.data.batches import batches
from tfopt.data.pack import write_encoded
from tfopt.data.readers.texts import Texts
from tfopt.data.records.manifest import Manifest
from tfopt.data.tokenizers import Encoded
from tfopt.errors import DataError

_HELD_OUT = 0.1


def hold_out(documents: Texts) -> tuple[Texts, Texts]:
    """The documents without their last tenth, and that tenth; of a single document, its last tenth.

    Raises:
        DataError: a single document of fewer than two lines.
    """
    texts = documents.texts
    if len(texts) > 1:
        cut = min(len(texts) - 1, max(1, round(len(texts) * (1 - _HELD_OUT))))
        return Texts(texts[:cut], None, documents.source), Texts(texts[cut:], None, documents.source)
    (text,) = texts
    cut = text.rfind("\n", 0, round(len(text) * (1 - _HELD_OUT))) + 1
    if not cut or not text[cut:].strip():
        raise DataError(f"{documents.source} is too short to hold a part out; give data.validation")
    return Texts([text[:cut]], None, documents.source), Texts([text[cut:]], None, documents.source)


def token_stream(
    documents: Sequence[str],
    encode: Callable[[str], list[int]],
    end: int | None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """Ids of all documents, one after another, each closed by the token `end` if there is one; int64."""
    parts = []
    for done, text in enumerate(documents, 1):
        parts.append(np.asarray([*encode(text), *([] if end is None else [end])], np.int64))
        progress(done, len(documents))
    return np.concatenate(parts)


def write_blocks(
    folder: Path, split: str, ids: np.ndarray, length: int, texts: int, source: str, shards: int, seed: int
) -> Manifest:
    """Cuts a stream of tokens into records and writes them as one split of a packed folder.

    Each record has `length` tokens and begins with the last one of the record before, so that every token but the
    first is predicted once. What is left at the end is too short for a record and left out.

    Args:
        folder: an existing folder.
        split: name of the split.
        ids: the stream.
        length: tokens of a record.
        texts: documents in the stream, for the manifest.
        source: name of the text in messages.
        shards, seed: as for `data.pack.write_pack`.

    Raises:
        DataError: the stream is shorter than one record.
    """
    records = (len(ids) - 1) // (length - 1)
    if not records:
        raise DataError(f"{source} has {len(ids)} tokens, one window takes {length}; lower data.max_length")
    starts = np.arange(records) * (length - 1)
    tokens = ids[starts[:, None] + np.arange(length)].reshape(-1)
    encoded = Encoded(tokens, np.full(records, length, np.int64), np.arange(records), too_long=0, longest=length)
    facts = {"texts": texts, "length_limit": length, "on_long": "error"}
    return write_encoded(folder, split, encoded, ids=None, shards=shards, seed=seed, facts=facts)


def next_tokens(
    folder: str | Path, batch_size: int, split: str | Mapping[str, float], **order: Any
) -> tf.data.Dataset:
    """Batches of ({"input_ids", "attention_mask"}, labels), all int32 of shape (batch, length - 1).

    The label at each token is the one after it. Arguments are those of `data.batches`.
    """

    def shifted(batch: dict[str, tf.Tensor]) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        return {name: value[:, :-1] for name, value in batch.items()}, batch["input_ids"][:, 1:]

    found = batches(folder, batch_size, by_length=False, split=split, **order)
    return found.map(shifted, num_parallel_calls=2, deterministic=True)
