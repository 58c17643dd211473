"""What else travels with a model: its tokenizer, its shape, its grids. Loads no TensorFlow.

Members go with the model object, into its `.keras` archive, which Keras itself reads past, and into exported files.
The shape of a model of our builders is also in its configuration, so that it survives whoever saves and loads it:
as the seed of a Dropout layer of rate 0, which never uses one and may be any text in both generations.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from tfopt._base.foreign import parse_json
from tfopt._base.members import CHAT, FACTS, TOKENIZER
from tfopt.errors import InputError

CONFIG = "tfopt_causal_lm.json"  # the shape of a causal language model
ENCODER = "tfopt_bert.json"  # the shape of an encoder
SEQ2SEQ = "tfopt_seq2seq.json"  # the shape of an encoder-decoder
SHAPES = (CONFIG, ENCODER, SEQ2SEQ)
TOKENIZERS = (TOKENIZER, "tfopt_tokenizer.bin")
FOR_TEXTS = (CHAT, FACTS, *TOKENIZERS)
PREFIX = "tfopt_"
CARRIER = "tfopt_facts"  # the layer
_ATTRIBUTE = "_tfopt_members"


def of(model: Any) -> dict[str, bytes]:
    """Name of a member -> its content."""
    found = getattr(model, _ATTRIBUTE, None)
    return _carried(model) if found is None else dict(found)


def put(model: Any, members: Mapping[str, bytes]) -> None:
    """Replaces all members of a model."""
    object.__setattr__(model, _ATTRIBUTE, dict(members))
    layer = _carrier(model)
    if layer is not None:
        shapes = {name: members[name].decode() for name in SHAPES if name in members}
        layer.seed = json.dumps({"of": _fingerprint(model), "members": shapes}) if shapes else None


def keep(model: Any, name: str, content: bytes) -> None:
    """Adds a member, or replaces one."""
    put(model, {**of(model), name: content})


def carrier(keras: Any, x: Any) -> Any:
    """The layer that holds the shape, for builders; it gives back what it takes."""
    return keras.layers.Dropout(0.0, name=CARRIER)(x)


def _carrier(model: Any) -> Any:
    return next((layer for layer in getattr(model, "layers", ()) if layer.name == CARRIER), None)


def _carried(model: Any) -> dict[str, bytes]:
    """What the configuration says, if the model is still the one of which it was said."""
    layer = _carrier(model)
    if layer is None or not isinstance(layer.seed, str):
        return {}
    try:
        found = parse_json(layer.seed, f"layer {CARRIER!r}", InputError)
    except InputError:  # somebody else's layer
        return {}
    members = found.get("members") if isinstance(found, dict) and found.get("of") == _fingerprint(model) else None
    if not isinstance(members, dict) or not all(isinstance(text, str) for text in members.values()):
        return {}
    return {name: members[name].encode() for name in SHAPES if name in members}


def _fingerprint(model: Any) -> str:
    """Of layers, their weights and the outputs: a model that was cut or built upon is another."""
    layers = [(layer.name, [tuple(map(int, w.shape)) for w in layer.weights]) for layer in model.layers]
    return hashlib.sha256(repr((layers, list(model.output_names))).encode()).hexdigest()[:16]
