"""SentencePiece's files: the pieces of a tokenizer.

The package has a parser of its own files, which asks for a newer protobuf than TensorFlow takes.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tfopt.errors import ModelFileError

UNIGRAM, NORMAL, USER_DEFINED, BYTE = 1, 1, 4, 6  # numbers of kinds of models and of pieces
# Message -> field -> its number and type, and whether there are many:
# https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
_FIELDS: Mapping[str, Mapping[str, tuple[int, str, bool]]] = {
    "Piece": {"piece": (1, "STRING", False), "score": (2, "FLOAT", False), "type": (3, "INT32", False)},
    "Trainer": {"model_type": (3, "INT32", False)},
    "Normalizer": {
        "precompiled_charsmap": (2, "BYTES", False), "add_dummy_prefix": (3, "BOOL", False),
        "remove_extra_whitespaces": (4, "BOOL", False),
    },
    "Model": {
        "pieces": (1, "Piece", True), "trainer_spec": (2, "Trainer", False),
        "normalizer_spec": (3, "Normalizer", False),
    },
}  # fmt: skip
_DEFAULTS = {"type": "1", "model_type": "1", "add_dummy_prefix": "true", "remove_extra_whitespaces": "true"}


def parse_pieces(content: bytes, source: str) -> Any:
    """What a file holds: `pieces`, each with `piece`, `score` and `type`, `trainer_spec` and `normalizer_spec`.

    Raises:
        ModelFileError: it is something else; `source` names it.
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    from google.protobuf.message import DecodeError

    kinds, package = descriptor_pb2.FieldDescriptorProto, "tfopt.sentencepiece"
    file = descriptor_pb2.FileDescriptorProto(name="tfopt/sentencepiece.proto", package=package, syntax="proto2")
    for message, fields in _FIELDS.items():
        described = file.message_type.add(name=message)
        for name, (number, kind, repeated) in fields.items():
            plain = getattr(kinds, f"TYPE_{kind}", None)
            described.field.add(
                name=name, number=number, type=plain or kinds.TYPE_MESSAGE, default_value=_DEFAULTS.get(name),
                label=kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL,
                type_name=None if plain else f".{package}.{kind}",
            )  # fmt: skip
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.Model"))()
    try:
        found.ParseFromString(content)
    except DecodeError as error:
        raise ModelFileError(f"{source} holds no pieces of SentencePiece: {error}") from error
    return found


def check_charsmap(content: bytes, source: str) -> None:
    """Walks through the table of replaced characters, as whoever uses it does without looking where it ends.

    Four bytes with the size of a trie, its units of 32 bits (https://github.com/s-yata/darts-clone), and texts that
    its leaves point into, each with a zero behind.

    Raises:
        ModelFileError: it leads outside; `source` names it.
    """
    size = int.from_bytes(content[:4], "little")
    damaged = ModelFileError(f"{source} has a damaged table of replaced characters")
    if not content[4:] or size % 4 or not 0 < size <= len(content) - 4:
        raise damaged
    units, texts = np.frombuffer(content, "<u4", size // 4, offset=4).astype(np.int64), content[4 + size :]
    try:
        texts.decode()
    except UnicodeDecodeError as error:
        raise damaged from error
    offsets = (units >> 10) << ((units & (1 << 9)) >> 6)
    letters = np.arange(1, 256)
    seen = np.zeros(len(units), bool)
    bases = offsets[:1]
    while len(bases):
        places = bases[:, None] ^ letters
        if places.max() >= len(units):
            raise damaged
        # A unit has a letter, and no sign: that is one of a value.
        places = places[(units[places] & ((1 << 31) | 0xFF)) == letters]
        places = np.unique(places[~seen[places]])
        seen[places] = True
        bases = places ^ offsets[places]
        leaves = bases[(units[places] >> 8) & 1 == 1]
        if len(leaves) and leaves.max() >= len(units):
            raise damaged
        for value in np.unique(units[leaves] & ((1 << 31) - 1)):
            if value >= len(texts) or texts[value] & 0xC0 == 0x80 or texts.find(b"\0", value) < 0:
                raise damaged
