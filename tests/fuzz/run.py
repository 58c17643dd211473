"""Runs damaged files through a parser, in a process of its own whose memory and time are limited."""

import contextlib
import dataclasses
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tfopt._base.children import WARM, ChildFailedError, run_in_child
from tfopt.errors import TfoptError

from .parsers import PARSERS

SECONDS = 20  # for one case
MEMORY = 2**30  # bytes beyond what is loaded before


@dataclasses.dataclass
class Found:
    """What came of the cases.

    Attributes:
        refused: how many raised an error of ours.
        wrong: number of a case -> a crash, a hang, another error, or damage that was taken for good.
    """

    refused: int = 0
    wrong: list[tuple[int, str]] = dataclasses.field(default_factory=list)


def run(name: str, folder: Path, *, seed: int, count: int) -> Found:
    """Runs the cases from `seed` on; one that ends the process is noted, and those after it are run in another."""
    here = PARSERS[name].here is not None
    found = _run(name, folder, seed, count, here=here)
    if here:
        again = [_run(name, folder, number, 1, here=False) for number, _ in found.wrong]
        found.refused += sum(part.refused for part in again)
        found.wrong = [one for part in again for one in part.wrong]
    return found


def _run(name: str, folder: Path, seed: int, count: int, *, here: bool) -> Found:
    found, end = Found(), seed + count
    while seed < end:
        note = folder / "at"
        note.write_text(f"{seed} 0")
        try:
            part = run_in_child(_batch, name, str(folder), seed, end - seed, here, preload=(*WARM, "tests.fuzz.run"),
                                timeout_s=60 + SECONDS * count)  # fmt: skip
        except ChildFailedError as error:
            last, refused = map(int, note.read_text().split())
            found.refused += refused
            found.wrong.append((last, str(error)))
            seed = last + 1
            continue
        found.refused += part.refused
        found.wrong += part.wrong
        break
    return found


def _batch(name: str, folder: str, seed: int, count: int, here: bool) -> Found:
    parser, found, base = PARSERS[name], Found(), Path(folder)
    made = base / f"good-{name}.path"
    if not made.exists():
        (base / f"good-{name}").mkdir()
        made.write_text(str(parser.make(base / f"good-{name}")))
    good = Path(made.read_text())
    parser.read(good)
    read = parser.here if here and parser.here is not None else parser.read
    read(good)  # what refuses everything would find nothing
    with _limits():
        for number, path in parser.cases(good, seed, count):
            (base / "at").write_text(f"{number} {found.refused}")
            signal.alarm(SECONDS)
            try:
                read(path)
            except TfoptError as error:
                found.refused += 1
                said = " ".join(str(error).split())
                what = "" if said and said.isprintable() else f"says {said[:100]!r}"
            except Exception as error:  # noqa: BLE001 - whatever is raised is what is looked for
                what = f"{type(error).__name__}: {str(error).strip()[:200]}"
            else:
                what = "damage was taken for good" if parser.checked else ""
            finally:
                signal.alarm(0)
            if what:
                found.wrong.append((number, what))
    return found


@contextlib.contextmanager
def _limits() -> Iterator[None]:
    def too_long(number: int, frame: Any) -> None:
        raise TimeoutError("it hangs")

    signal.signal(signal.SIGALRM, too_long)
    have = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, have[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, have)
