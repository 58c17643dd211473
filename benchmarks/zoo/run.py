"""Tries operations on models.

Each model of each generation has a process of its own, and every operation in it a model built anew; one that ends
the process is noted, and those after it are tried in another.
"""

import tempfile
import traceback
from pathlib import Path
from typing import Any

from benchmarks.zoo.model import Entry
from tfopt._base.children import WARM, ChildFailedError, run_in_child
from tfopt.errors import TfoptError

_SECONDS = 600  # for an operation
WORKS, REFUSED, FAILS, WRONG, SENSELESS = "works", "refused", "fails", "wrong", "senseless"
Outcome = tuple[str, str]


def tried(name: str, generation: str, operations: list[str]) -> dict[str, Outcome]:
    """Operation -> what came of it, and why."""
    found: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory() as folder:
        note = Path(folder, "at")
        while len(found) < len(operations):
            left = [o for o in operations if o not in found]
            note.write_text("")
            try:
                found |= run_in_child(
                    _try_all,
                    name,
                    generation,
                    left,
                    str(note),
                    preload=(*WARM, "benchmarks.zoo.run"),
                    timeout_s=_SECONDS * len(left),
                )
            except ChildFailedError as error:
                *done, at = note.read_text().splitlines() or [left[0]]
                found |= {o: (s, w) for o, s, w in (line.split("\t", 2) for line in done)}
                found[at] = (FAILS, f"the process ended: {error}")
    return found


def _try_all(name: str, generation: str, operations: list[str], note: str) -> dict[str, Outcome]:
    from benchmarks.zoo.operations import OPERATIONS, entries
    from tfopt._keras.keras_api import keras_module

    entry, found = entries()[name], {}
    for operation in operations:
        with Path(note).open("a") as file:
            file.write(operation)
        with tempfile.TemporaryDirectory() as folder:
            found[operation] = outcome(
                entry, keras_module(generation), OPERATIONS[operation], Path(folder), operation
            )
        status, why = found[operation]
        with Path(note).open("a") as file:
            file.write(f"\t{status}\t{' '.join(why.split())}\n")
    return found


def outcome(entry: Entry, keras: Any, work: Any, folder: Path, operation: str) -> Outcome:
    """Tries one operation."""
    from benchmarks.zoo.operations import WrongError

    if operation in entry.senseless:
        return SENSELESS, entry.senseless[operation]
    keras.utils.set_random_seed(0)
    model, values = entry.build(keras)
    try:
        work(model, values, folder, entry)
    except TfoptError as error:
        return REFUSED, f"{type(error).__name__}: {error}"
    except WrongError as error:
        return WRONG, str(error)
    except Exception as error:  # noqa: BLE001 - whatever is raised is what is looked for
        where = traceback.extract_tb(error.__traceback__)
        ours = next((f for f in reversed(where) if "/tfopt/" in f.filename), where[-1])
        said, place = " ".join(str(error).split())[:300], f"{Path(ours.filename).name}:{ours.lineno}"
        return FAILS, f"{type(error).__name__}: {said} ({place})"
    return WORKS, ""
