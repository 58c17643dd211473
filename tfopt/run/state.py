"""`state.json` of a run: one step on a line, each with a checksum, so that damage costs the step that it is in."""

import dataclasses
import hashlib
import json
import logging
import re
from pathlib import Path
from typing import Any

import tfopt
from tfopt._base.files import write_text
from tfopt._base.foreign import read_bytes

_OUTPUT = re.compile(r'"([^"\\]+)": "[0-9a-f]{64}"')
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class DoneStep:
    """A finished step.

    Attributes:
        name: of the step.
        seconds: that it took.
        outputs: path in the run's folder -> digest of what it wrote there.
        result: what it gave, as JSON.
    """

    name: str
    seconds: float
    outputs: dict[str, str]
    result: Any

    def line(self, run: str) -> str:
        """The step as JSON, with a checksum over it and the run that it belongs to."""
        values = dataclasses.asdict(self)
        return json.dumps({**values, "check": _check(values, run)}, allow_nan=False)


@dataclasses.dataclass(frozen=True)
class State:
    """What a run has done.

    Attributes:
        fingerprint: of recipe and inputs; None where the file does not tell any more.
        version: of tfopt, likewise.
        steps: those that are whole.
        outputs: paths that any step wrote, whole or not.
    """

    fingerprint: str | None
    version: str | None
    steps: list[DoneStep]
    outputs: tuple[str, ...] = ()

    def write(self, path: Path) -> None:
        """Writes the file; JSON, a step on each line."""
        run = f"{self.fingerprint} {self.version}"
        head = f'"fingerprint": {json.dumps(self.fingerprint)}, "version": {json.dumps(self.version)}'
        lines = ",\n".join(step.line(run) for step in self.steps)
        write_text(path, f'{{{head}, "steps": [\n{lines}\n]}}\n')


def read_state(path: Path, fingerprint: str) -> State:
    """Reads the file as far as it is whole.

    Args:
        path: the file.
        fingerprint: of the recipe and inputs at hand; a head that cannot be read is taken to be of them, and the
            checksums of the steps tell whether that is so.
    """
    lines = read_bytes(path, "state of a run").decode("utf-8", "replace").splitlines()
    found = _object(f"{lines[0]}]}}") if lines else None
    head = found or {"fingerprint": fingerprint, "version": tfopt.__version__}
    known = (head.get("fingerprint"), head.get("version"))
    steps = [_step(line, f"{known[0]} {known[1]}") for line in lines[1:] if line.startswith("{")]
    whole = [step for step in steps if step is not None]
    if found is None or len(whole) < len(steps):
        _log.warning("%s is damaged: %d of its steps can be read; the others are done again", path, len(whole))
    fingerprint, version = (value if isinstance(value, str) else None for value in known)  # type: ignore[assignment]
    named = [name for line in lines[1:] for name in _OUTPUT.findall(line)]
    return State(fingerprint, version, whole, outputs=tuple(name for name in named if _is_inside(name)))


def _is_inside(output: str) -> bool:
    return not Path(output).is_absolute() and ".." not in Path(output).parts and output != "."


def _step(line: str, run: str) -> DoneStep | None:
    values = _object(line.removesuffix(","))
    if values is None or values.pop("check", None) != _check(values, run):
        return None
    known = {field.name for field in dataclasses.fields(DoneStep)}
    return DoneStep(**values) if values.keys() == known and all(map(_is_inside, values["outputs"])) else None


def _object(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _check(values: dict[str, Any], run: str) -> str:
    content = f"{run} {json.dumps(values, sort_keys=True)}"
    return hashlib.sha256(content.encode("utf-8", "replace")).hexdigest()[:16]
