"""What a SavedModel of ours says of its inputs, in the folder that TensorFlow keeps for such files."""

from pathlib import Path

from tfopt._base.files import write_json
from tfopt._base.foreign import read_json
from tfopt.errors import ModelFileError

_FILE = Path("assets.extra", "tfopt_inputs.json")


def write_limits(folder: Path, limits: dict[str, int]) -> None:
    """Writes the rows of the table in which each input's ids are looked up.

    XLA answers an id beyond its table with the last row, and a GPU with zeros; neither says so.
    """
    (folder / _FILE.parent).mkdir(exist_ok=True)
    write_json(folder / _FILE, {"schema": 1, "limits": limits})


def read_limits(folder: Path) -> dict[str, int]:
    """The same by input; empty for a SavedModel of somebody else.

    Raises:
        ModelFileError: the file is damaged.
    """
    if not (folder / _FILE).exists():
        return {}
    values = read_json(folder / _FILE, "description of inputs", error=ModelFileError)
    found = values.get("limits") if isinstance(values, dict) else None
    if not isinstance(found, dict) or not all(type(rows) is int and rows > 0 for rows in found.values()):
        raise ModelFileError(f"{folder / _FILE} must hold a number above 0 for each input, got {values!r:.80}")
    return found
