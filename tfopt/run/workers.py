"""A run by several workers: all of them train, the chief alone writes, and the others read what it wrote.

Every worker goes through the same steps in the same order. Before one that has to be done, and behind it, the chief
tells the others so, by the collective operations that the training itself uses; the run's folder must be on a disk
that all of them see.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfopt._base.manifests import STATE
from tfopt.errors import WorkFailedError
from tfopt.run.folder import RunFolder, fingerprint
from tfopt.run.state import read_state
from tfopt.train.loop import reason
from tfopt.train.strategy import is_chief, works_with_others

_BEGINS, _DONE = 1.0, 2.0


class Crew:
    """What the chief tells the other workers."""

    def __init__(self, strategy: Any) -> None:
        self._strategy, self.is_chief = strategy, is_chief(strategy)

        def summed(value: tf.Tensor) -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            first = tf.cast(tf.equal(context.replica_id_in_sync_group, 0), value.dtype)  # of the chief
            found: tf.Tensor = context.all_reduce(tf.distribute.ReduceOp.SUM, first * value)
            return found

        self._all = tf.function(lambda value: strategy.run(summed, args=(value,)), autograph=False)

    def tell(self, what: float = 0.0) -> float:
        """The chief's value, on every worker; waits for all of them."""
        try:
            found = self._all(tf.constant(what if self.is_chief else 0.0))
            return float(self._strategy.experimental_local_results(found)[0])
        except tf.errors.OpError as error:
            raise WorkFailedError(f"another worker is gone ({reason(error)})") from error


class ChiefFolder(RunFolder):
    """The folder of a run whose steps others follow; arguments as those of `RunFolder`, and the workers."""

    def __init__(self, *arguments: Any, workers: Crew, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._workers = workers

    def do(self, name: str, outputs: list[str], work: Callable[[], Any], *, together: bool = False) -> Any:
        def told() -> Any:
            self._workers.tell(_BEGINS)
            return work()

        result = super().do(name, outputs, told)
        self._workers.tell(_DONE)
        return result


class FollowedFolder(RunFolder):
    """The folder of a run as the other workers see it: nothing is written, results are what the chief found.

    Args:
        path: of the run.
        recipe: of the run.
        inputs: files outside the folder that the run reads.
        workers: the chief among them writes.
    """

    def __init__(self, path: Path, recipe: Any, inputs: list[Path], *, workers: Crew) -> None:
        self.path, self._workers = path, workers
        self._fingerprint = fingerprint(recipe, inputs)
        self._steps, self._held = {}, None

    def do(self, name: str, outputs: list[str], work: Callable[[], Any], *, together: bool = False) -> Any:
        if self._workers.tell() == _BEGINS:
            if together:
                work()
            self._workers.tell()
        state = read_state(self.path / STATE, self._fingerprint)
        found = next((step for step in state.steps if step.name == name), None)
        if found is None:
            raise WorkFailedError(
                f"{self.path} does not have what the chief wrote in step {name!r}: it must be on a disk that all "
                "workers see"
            )
        return found.result


def folder_for(
    strategy: Any, path: Path, recipe: Any, *, inputs: list[Path], resume: bool, overwrite: bool
) -> RunFolder:
    """The folder of a run for this worker, or for the only one; arguments and errors are those of `RunFolder`."""
    if not works_with_others(strategy):
        return RunFolder(path, recipe, inputs, resume=resume, overwrite=overwrite)
    workers = Crew(strategy)
    if workers.is_chief:
        return ChiefFolder(path, recipe, inputs, resume=resume, overwrite=overwrite, workers=workers)
    return FollowedFolder(path, recipe, inputs, workers=workers)
