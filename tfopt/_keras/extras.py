"""What else travels with a model: its tokenizer, its shape, its grids. Loads no TensorFlow.

Members go with the model object, into its `.keras` archive, which Keras itself reads past, and into exported files.
"""

from collections.abc import Mapping
from typing import Any

CONFIG = "tfopt_causal_lm.json"  # the shape of a causal language model
ENCODER = "tfopt_bert.json"  # the shape of an encoder
TOKENIZERS = ("tfopt_tokenizer.json", "tfopt_tokenizer.bin")
PREFIX = "tfopt_"
_ATTRIBUTE = "_tfopt_members"


def of(model: Any) -> dict[str, bytes]:
    """Name of a member -> its content."""
    return dict(getattr(model, _ATTRIBUTE, {}))


def put(model: Any, members: Mapping[str, bytes]) -> None:
    """Replaces all members of a model."""
    object.__setattr__(model, _ATTRIBUTE, dict(members))


def keep(model: Any, name: str, content: bytes) -> None:
    """Adds a member, or replaces one."""
    put(model, {**of(model), name: content})
