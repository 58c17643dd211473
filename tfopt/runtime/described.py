"""What an artifact of ours says of its inputs, in a folder that TensorFlow keeps for such files or in the metadata.

XLA answers an id beyond its table with the last row, and a GPU with zeros; neither says so. And which of its inputs
tells padding, only the model knew.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tfopt._base.files import write_json
from tfopt._base.foreign import parse_json, read_bytes, read_json
from tfopt._base.limits import MAX_MEMBER_BYTES
from tfopt._base.masks import MASK, masked_by_name
from tfopt._base.members import FACTS, PACKED
from tfopt.data.text_facts import unpacked
from tfopt.errors import ModelFileError

_FILE = Path("assets.extra", "tfopt_inputs.json")
MEMBER = _FILE.name


@dataclasses.dataclass(frozen=True)
class Described:
    """Facts of an artifact's inputs.

    Attributes:
        limits: input -> rows of the table in which its ids are looked up.
        masks: mask -> the inputs whose padding it tells from content.
    """

    limits: dict[str, int] = dataclasses.field(default_factory=dict)
    masks: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def as_json(self) -> str:
        return json.dumps({"schema": 1, **dataclasses.asdict(self)})


def masks_by_name(inputs: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Masks of an artifact that says nothing: an input "attention_mask", of all others."""
    names = tuple(inputs)
    return {MASK: masked_by_name(names)} if MASK in names else {}


def write_described(folder: Path, found: Described) -> None:
    """Writes the facts into a SavedModel."""
    (folder / _FILE.parent).mkdir(exist_ok=True)
    write_json(folder / _FILE, {"schema": 1, **dataclasses.asdict(found)})


def write_members(folder: Path, members: Mapping[str, bytes]) -> None:
    """Writes what a SavedModel needs for texts."""
    (folder / _FILE.parent).mkdir(exist_ok=True)
    for name, content in members.items():
        (folder / _FILE.parent / name).write_bytes(content)


def read_members(folder: Path) -> dict[str, bytes]:
    """What a SavedModel says of texts.

    Raises:
        ModelFileError: it is damaged.
    """
    paths = [folder / _FILE.parent / name for name in (FACTS, PACKED)]
    found = {
        path.name: read_bytes(path, "what travels with a model", most=MAX_MEMBER_BYTES, error=ModelFileError)
        for path in paths if path.exists()
    }  # fmt: skip
    return unpacked(found, str(folder))


def read_described(folder: Path) -> Described | None:
    """The facts of a SavedModel; None for one of somebody else.

    Raises:
        ModelFileError: the file is damaged.
    """
    if not (folder / _FILE).exists():
        return None
    return _checked(read_json(folder / _FILE, "description of inputs", error=ModelFileError), folder / _FILE)


def described_in(members: dict[str, bytes], path: Path) -> Described | None:
    """The facts in the metadata of a TFLite file; None where there are none.

    Raises:
        ModelFileError: they are damaged.
    """
    if MEMBER not in members:
        return None
    return _checked(parse_json(members[MEMBER], f"{path}: {MEMBER}", error=ModelFileError), path)


def _checked(values: Any, path: Path) -> Described:
    limits, masks = (values.get(key, {}) if isinstance(values, dict) else None for key in ("limits", "masks"))
    fine = isinstance(limits, dict) and all(type(rows) is int and rows > 0 for rows in limits.values())
    if not fine or not isinstance(masks, dict) or not all(_are_names(names) for names in masks.values()):
        raise ModelFileError(f"{path} must say limits above 0 and masks of inputs, got {values!r:.80}")
    assert isinstance(limits, dict)
    return Described(limits, {mask: tuple(names) for mask, names in masks.items()})


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)
