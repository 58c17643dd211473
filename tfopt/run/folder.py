"""The folder of a run: which steps are done, what they wrote, and the manifest at the end."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tfopt
from tfopt._base.files import files_below, remove, remove_leftovers, sha256, tree_digest, write_json, write_text
from tfopt.errors import InputError
from tfopt.recipe import Recipe
from tfopt.report import Step

MANIFEST = "manifest.json"
_STATE, _RECIPE = "state.json", "recipe.toml"
_RESULTS = (MANIFEST, "report.json", "report.html")


class RunFolder:
    """Steps of a run that are done once, and skipped when the run is resumed.

    Args:
        path: the folder; it is made when the first step begins.
        recipe: what the run does.
        inputs: files outside the folder that the run reads; they must be the same when it is resumed.
        resume: go on with a run that was interrupted.
        overwrite: begin anew over an earlier run, whose files are removed when the first step begins.

    Raises:
        InputError: the folder holds a run and neither was asked for, the recipe, an input or the version of tfopt
            differs, or it holds something else.
    """

    def __init__(
        self, path: str | os.PathLike[str], recipe: Recipe, inputs: list[Path], resume: bool, overwrite: bool
    ) -> None:
        self.path, self.recipe = Path(path), recipe
        self._fingerprint = _fingerprint(recipe, inputs)
        self._steps: list[dict[str, Any]] = []
        self._stale: list[str] = []
        self._working = False  # from the first step that has to be done
        state = self.path / _STATE
        if self.path.is_file():
            raise InputError(f"{self.path} is a file; choose a folder with --out")
        if not files_below(self.path):
            return
        if not state.exists():
            raise InputError(f"{self.path} is not empty and holds no run; choose another folder with --out")
        stored = json.loads(state.read_text("utf-8"))
        if overwrite:
            self._stale = [*_RESULTS, *(o for step in stored["steps"] for o in step["outputs"])]
            return
        if not resume:
            raise InputError(f"{self.path} holds a run already: go on with --resume, or choose another --out")
        if stored.get("version") != tfopt.__version__:
            raise InputError(
                f"{self.path} was begun with tfopt {stored.get('version', 'of an earlier version')}, this is "
                f"{tfopt.__version__}; begin anew with --overwrite, or choose another --out"
            )
        if stored["fingerprint"] != self._fingerprint:
            raise InputError(f"{self.path} was begun with another recipe or other data; choose another --out")
        self._steps = stored["steps"]

    @property
    def steps(self) -> list[Step]:
        """The finished steps in order."""
        return [Step(s["name"], s["seconds"]) for s in self._steps]

    def do(self, name: str, outputs: list[str], work: Callable[[], Any]) -> Any:
        """Runs `work` unless this step is done and its outputs are as it left them.

        Args:
            name: of the step.
            outputs: files and folders it writes, relative to the run's folder.
            work: does it; what it returns must be JSON and is returned again when the run is resumed.
        """
        index = next((i for i, s in enumerate(self._steps) if s["name"] == name), None)
        if index is not None and not self._working and self._intact(self._steps[index]):
            return self._steps[index]["result"]
        if not self._working:
            self._steps = self._steps[:index] if index is not None else self._steps
            self._begin()
        started = time.monotonic()
        try:
            result = work()
        except BaseException:
            self._forget_if_nothing_was_done()
            raise
        digests = {o: tree_digest(self.path / o) for o in outputs}
        seconds = round(time.monotonic() - started, 3)
        self._steps.append({"name": name, "seconds": seconds, "outputs": digests, "result": result})
        self._write_state()
        return result

    def write_manifest(self, machine: dict[str, Any]) -> None:
        """Writes the size and SHA-256 of every file, and the versions of everything."""
        files = [f for f in files_below(self.path) if f.name not in (MANIFEST, _STATE)]
        write_json(
            self.path / MANIFEST,
            {
                "schema": 1,
                "files": [
                    {"path": str(f.relative_to(self.path)), "bytes": f.stat().st_size, "sha256": sha256(f)}
                    for f in files
                ],
                "versions": machine["versions"],
                "python": machine["python"],
            },
        )

    def _begin(self) -> None:
        """Marks the folder as a run's before anything is written, so that a kill at any time can be resumed."""
        self._working = True
        self.path.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.path)
        self._write_state()
        for output in self._stale:
            remove(self.path / output)
            with contextlib.suppress(OSError):  # the folder of the run itself, or one that is not empty
                (self.path / output).parent.rmdir()
        write_text(self.path / _RECIPE, self.recipe.to_toml())

    def _write_state(self) -> None:
        write_json(
            self.path / _STATE,
            {"fingerprint": self._fingerprint, "version": tfopt.__version__, "steps": self._steps},
        )

    def _forget_if_nothing_was_done(self) -> None:
        """Bad input that shows in the first step leaves no folder behind."""
        if self._steps:
            return
        for name in (_STATE, _RECIPE):
            remove(self.path / name)
        with contextlib.suppress(OSError):  # something else is in it
            self.path.rmdir()

    def _intact(self, step: dict[str, Any]) -> bool:
        return all(
            (self.path / o).exists() and tree_digest(self.path / o) == digest
            for o, digest in step["outputs"].items()
        )


def _fingerprint(recipe: Recipe, inputs: list[Path]) -> str:
    digest = hashlib.sha256(recipe.to_toml().encode())
    for path in inputs:
        digest.update(tree_digest(path).encode())
    return digest.hexdigest()
