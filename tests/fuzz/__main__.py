"""`python -m tests.fuzz PARSER --minutes N`: damaged files until the time is up, and what went wrong with them."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from .parsers import PARSERS
from .run import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("parser", choices=[*PARSERS, "all"], metavar="PARSER", help=f"all, or {', '.join(PARSERS)}")
    parser.add_argument("--minutes", type=float, help="for each parser")
    parser.add_argument("--count", type=int, default=None, help="mutations of each, instead of minutes")
    parser.add_argument("--seed", type=int, default=0, help="the first number; each makes one case again")
    given = parser.parse_args()
    wrong = 0
    for name in PARSERS if given.parser == "all" else [given.parser]:
        started, seed, refused = time.monotonic(), given.seed, 0
        with tempfile.TemporaryDirectory() as folder:
            while True:
                batch = 200 if given.count is None else min(200, given.seed + given.count - seed)
                if batch < 1 or (given.count is None and time.monotonic() - started > 60 * (given.minutes or 1)):
                    break
                found = run(name, Path(folder), seed=seed, count=batch)
                seed, refused = seed + batch, refused + found.refused
                for number, what in found.wrong:
                    print(f"{name} --seed {number} --count 1: {what}", flush=True)  # noqa: T201
                wrong += len(found.wrong)
        took = time.monotonic() - started
        print(f"{name}: {seed - given.seed} mutations, {refused} refused, {took:.0f} s", flush=True)  # noqa: T201
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
