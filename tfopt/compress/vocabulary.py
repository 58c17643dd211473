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

from tfopt._base.files import existing
from tfopt._base.foreign import read_text, to_text
from tfopt._base.limits import MAX_MEMBER_BYTES
from tfopt._keras import extras, keras_api
from tfopt.data.vocabulary import cut_tokenizer
from tfopt.errors import InputError, ModelFileError
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
    model: Any, tokenizer: str | Path | bytes, *, texts: Iterable[str], least: int = 1
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
    _table(model)
    content, kept = cut_tokenizer(*_content(tokenizer), texts, least)
    return CutVocabulary(cut_rows(model, kept), content, kept)


def cut_rows(model: Any, kept: np.ndarray) -> Any:
    """A new model whose table has the rows of some tokens only.

    Args:
        model: as for `cut_vocabulary`.
        kept: ids that stay, ascending.

    Raises:
        InputError: ids that the table does not have, or a model whose table is used in another way.
    """
    table = _table(model)
    rows = int(table.embeddings.shape[0])
    if kept[-1] >= rows:
        raise InputError(
            f"the tokenizer has token {kept[-1]}, the model's table {rows} rows; they do not belong together"
        )
    path = next(w.path for w in keras_api.weights(model) if w.layer is table)
    made = rebuild(model, Changes({path: keras_api.to_numpy(table.embeddings)[kept]}))
    members = extras.of(model)
    if members:
        extras.put(made, _resized(members, len(kept)))
    return made


def all_rows(model: Any, original: Any, kept: np.ndarray) -> Any:
    """A new model of a cut vocabulary with the rows of the original again, where its own table has none.

    Args:
        model: was made from the other by `cut_rows`, and trained since.
        original: has all rows.
        kept: ids of the other whose rows the model has, ascending.

    Raises:
        InputError: a table that is split, narrower, or used in another way.
    """
    rows, whole = (keras_api.to_numpy(_table(one).embeddings) for one in (model, original))
    if rows.shape != (len(kept), whole.shape[1]):
        raise InputError(f"a table of {rows.shape} does not go with {len(kept)} tokens of one of {whole.shape}")
    whole = whole.copy()
    whole[kept] = rows
    table = _table(model)
    path = next(w.path for w in keras_api.weights(model) if w.layer is table)
    return rebuild(model, Changes({path: whole}))


def _content(tokenizer: str | Path | bytes) -> tuple[str, str]:
    if isinstance(tokenizer, bytes):
        return to_text(tokenizer, "the tokenizer", ModelFileError), "the tokenizer"
    path = existing(tokenizer, "tokenizer")
    path = existing(path / "tokenizer.json", "tokenizer") if path.is_dir() else path
    return read_text(path, "tokenizer", most=MAX_MEMBER_BYTES, error=ModelFileError), str(path)


def _table(model: Any) -> Any:
    """The only layer that reads the ids, an Embedding with one use.

    Raises:
        InputError: there is none, or ids or table are used otherwise.
    """
    if not {extras.CONFIG, extras.SEQ2SEQ}.isdisjoint(extras.of(model)):
        raise InputError(
            f"model {model.name!r} generates: its output has a column for every token, which must stay"
        )
    ids = next((t for t in model.inputs if str(t.name).partition(":")[0] == _IDS), None)
    if ids is None:
        raise InputError(f"model {model.name!r} has no input {_IDS!r}")
    readers = [node.operation for node in nodes(model) if id(ids) in node.inputs]
    tables = [layer for layer in readers if type(layer).__name__ == "Embedding"]
    uses = [node for node in nodes(model) if tables and node.operation is tables[0]]
    if len(tables) != 1 or len(uses) != 1:
        raise InputError(f"the ids of model {model.name!r} must be looked up in one table, once")
    return tables[0]


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
