"""SentencePiece's files: the pieces of a tokenizer.

The package has a parser of its own files, which asks for a newer protobuf than TensorFlow takes.
"""

from collections.abc import Mapping
from typing import Any

from tfopt.errors import ModelFileError

UNIGRAM, NORMAL, BYTE = 1, 1, 6  # numbers of kinds of models and of pieces
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
