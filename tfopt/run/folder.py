"""The folder of a run: which steps are done, what they wrote, and the manifest at the end."""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

import tfopt
from tfopt._base.files import files_below, remove, remove_leftovers, sha256, tree_digest, write_json, write_text
from tfopt._base.manifests import MANIFEST, STATE
from tfopt.errors import InputError
from tfopt.recipe import Recipe
from tfopt.report import Step
from tfopt.run.state import DoneStep, State, read_state

_RECIPE, _LOCK, _OWNER = "recipe.toml", "run.lock", "run.owner"
_OF_THE_RUN = (MANIFEST, STATE, _LOCK, _OWNER)  # what is no result of a step
_RESULTS = (MANIFEST, "report.json", "report.html")
CHECKPOINTS = "checkpoints"  # of the training that is under way
JOURNAL = "tensorboard"  # what it shows of the trainings
LESSONS = "lessons"  # what a teacher answered, for the trainings that are under way


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
        self._fingerprint = fingerprint(recipe, inputs)
        self._steps: dict[str, DoneStep] = {}
        self._stale: list[str] = []
        self._working = False  # from the first step that has to be done
        self._changed = False  # from the first step whose results are other than they were
        self._passed: list[str] = []
        self._held: FileLock | None = None
        state = self.path / STATE
        if self.path.is_file():
            raise InputError(f"{self.path} is a file; choose a folder with --out")
        if not [f for f in files_below(self.path) if f.name not in (_LOCK, _OWNER)]:
            return
        if not state.exists():
            raise InputError(f"{self.path} is not empty and holds no run; choose another folder with --out")
        stored = read_state(state, self._fingerprint)
        if overwrite:
            self._lock()
            self._stale = [*_RESULTS, CHECKPOINTS, JOURNAL, LESSONS, *stored.outputs]
            return
        if not resume:
            raise InputError(f"{self.path} holds a run already: go on with --resume, or choose another --out")
        self._check_same(stored)
        self._lock()
        self._steps = {step.name: step for step in read_state(state, self._fingerprint).steps}

    def _check_same(self, stored: State) -> None:
        """That the run was begun by this version, with this recipe and these inputs."""
        if stored.version != tfopt.__version__:
            raise InputError(
                f"{self.path} was begun with tfopt {stored.version or 'of an earlier version'}, this is "
                f"{tfopt.__version__}; begin anew with --overwrite, or choose another --out"
            )
        if stored.fingerprint != self._fingerprint:
            raise InputError(f"{self.path} was begun with another recipe or other data; choose another --out")

    def close(self) -> None:
        """Lets others work in the folder."""
        if self._held is not None:
            remove(self.path / _OWNER)
            self._held.release()
            self._held = None

    def _lock(self) -> None:
        """Keeps others from the folder as long as this process lives."""
        lock = FileLock(self.path / _LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise InputError(
                f"{self.path} is being worked in by another process ({_owner(self.path / _OWNER)}): wait until it "
                "has ended, or choose another --out"
            ) from None
        self._held = lock
        write_text(self.path / _OWNER, f"{os.getpid()}\n")

    @property
    def steps(self) -> list[Step]:
        """The finished steps in order."""
        return [Step(s.name, s.seconds) for s in self._steps.values()]

    def lessons(self, asked: str) -> Path:
        """Where a teacher's answers are kept: trainings that ask the same share them, and those of others go."""
        folder = self.path / LESSONS / asked
        for other in folder.parent.glob("*"):
            if other != folder:
                remove(other)
        return folder

    def do(self, name: str, outputs: list[str], work: Callable[[], Any], *, together: bool = False) -> Any:
        """Runs `work` unless this step is done and its outputs are as it left them.

        Args:
            name: of the step.
            outputs: files and folders it writes, relative to the run's folder.
            work: does it; what it returns must be JSON and is returned again when the run is resumed.
            together: whether all workers do it, where there are several.
        """
        done = self._steps.get(name)
        if done is not None and not self._changed and self._intact(done):
            self._pass(done)
            return done.result
        self._begin()
        before = self._digests(outputs) if done is None else done.outputs
        started = time.monotonic()
        try:
            result = work()
        except BaseException:
            self._forget_if_nothing_was_done()
            raise
        found = self._digests(outputs)
        # Later steps read what this one wrote, or what it gave: if that is as it was before, they stand.
        if not outputs or found != before:
            self._changed = True
            self._steps = {step: self._steps[step] for step in self._passed}
        self._pass(DoneStep(name, round(time.monotonic() - started, 3), found, result=result))
        self._write_state()
        return result

    def _pass(self, step: DoneStep) -> None:
        """Puts a step behind those that were passed before it: they are shown in the order in which they run."""
        self._passed.append(step.name)
        self._steps.pop(step.name, None)
        self._steps[step.name] = step

    def _digests(self, outputs: list[str]) -> dict[str, str]:
        return {o: tree_digest(self.path / o) for o in outputs if (self.path / o).exists()}

    def write_manifest(self, machine: dict[str, Any]) -> None:
        """Writes the size and SHA-256 of every file, and the versions of everything."""
        files = [f for f in files_below(self.path) if f.name not in _OF_THE_RUN]
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
        if self._working:
            return
        self._working = True
        self.path.mkdir(parents=True, exist_ok=True)
        if self._held is None:
            self._lock()
        remove(self.path / MANIFEST)  # what it lists is about to change
        remove_leftovers(self.path)
        self._write_state()
        for output in self._stale:
            remove(self.path / output)
            with contextlib.suppress(OSError):  # the folder of the run itself, or one that is not empty
                (self.path / output).parent.rmdir()
        write_text(self.path / _RECIPE, self.recipe.to_toml())

    def _write_state(self) -> None:
        State(self._fingerprint, tfopt.__version__, list(self._steps.values())).write(self.path / STATE)

    def _forget_if_nothing_was_done(self) -> None:
        """Bad input that shows in the first step leaves no folder behind."""
        if self._steps:
            return
        self.close()
        for name in (STATE, _RECIPE, _LOCK):
            remove(self.path / name)
        with contextlib.suppress(OSError):  # something else is in it
            self.path.rmdir()

    def _intact(self, step: DoneStep) -> bool:
        return self._digests(list(step.outputs)) == step.outputs


def _owner(path: Path) -> str:
    try:
        return f"process {int(path.read_text('utf-8'))}"
    except (OSError, ValueError):  # it has just begun, or ended
        return "its number is not known"


def fingerprint(recipe: Recipe, inputs: list[Path]) -> str:
    """Of what a run does and reads."""
    digest = hashlib.sha256(recipe.to_toml().encode())
    for path in inputs:
        digest.update(tree_digest(path).encode())
    return digest.hexdigest()
