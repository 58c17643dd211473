"""`python -m benchmarks.zoo`: every operation on every model, and the table of what works."""

import argparse
import collections
import concurrent.futures
import importlib.util
import json
import time

from benchmarks.common import RESULTS, save
from benchmarks.zoo.run import FAILS, REFUSED, SENSELESS, WORKS, WRONG, Outcome, tried

Table = dict[str, dict[str, Outcome]]


def main() -> None:
    from benchmarks.zoo.operations import OPERATIONS, entries

    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__)
    parser.add_argument("--models", nargs="*", help="those whose names begin so; all if not given")
    parser.add_argument("--operations", nargs="*", choices=list(OPERATIONS), default=list(OPERATIONS))
    parser.add_argument("--generation", choices=("tf_keras", "keras"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--resume", action="store_true", help="keep what an earlier run found, try the rest, and add it"
    )
    given = parser.parse_args()
    chosen = list(entries().values())
    if importlib.util.find_spec("keras_hub") is None:
        print("the models of KerasHub are left out: pip install 'tfopt[kerashub]'")
        chosen = [entry for entry in chosen if not entry.name.startswith("hub_")]
    pairs = [
        (entry.name, generation)
        for entry in chosen
        for generation in entry.generations
        if given.generation in (None, generation)
        and (not given.models or entry.name.startswith(tuple(given.models)))
    ]
    table = _kept() if given.resume else {}
    left = {
        (name, generation): [o for o in given.operations if o not in table.get(f"{name} ({generation})", {})]
        for name, generation in pairs
    }
    is_whole = not given.models and len(given.operations) == len(OPERATIONS) and given.generation is None
    started = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(given.workers) as pool:
        waiting = {
            pool.submit(tried, name, generation, operations): (name, generation)
            for (name, generation), operations in left.items()
            if operations
        }
        for future in concurrent.futures.as_completed(waiting):
            name, generation = waiting[future]
            found, row = future.result(), f"{name} ({generation})"
            table[row] = table.get(row, {}) | found
            marks = "".join(
                {WORKS: "+", REFUSED: "o", FAILS: "X", WRONG: "W", SENSELESS: "."}[found[o][0]]
                for o in left[name, generation]
            )
            print(f"{marks} {name} ({generation})", flush=True)
            if is_whole or given.resume:
                _keep(table)
            for operation, (status, why) in found.items():
                if status not in (WORKS, SENSELESS):
                    print(f"    {operation} {status}: {why[:300]}", flush=True)
    counts, asked, share = _counted(table)
    print(f"{len(table)} models, {dict(counts)}: {share:.1%} of {asked} work, {time.monotonic() - started:.0f} s")


def _counted(table: Table) -> tuple[collections.Counter[str], int, float]:
    """Outcomes, how many were asked for, and the share of these that work."""
    counts = collections.Counter(status for found in table.values() for status, _ in found.values())
    asked = sum(counts.values()) - counts[SENSELESS]
    return counts, asked, counts[WORKS] / max(asked, 1)


def _keep(table: Table) -> None:
    counts, asked, share = _counted(table)
    rows = {name: {o: list(outcome) for o, outcome in found.items()} for name, found in sorted(table.items())}
    figures = {"models": len(table), "counts": dict(counts), "asked": asked, "works": round(share, 4)}
    save("zoo", {**figures, "table": rows})


def _kept() -> Table:
    path = RESULTS / "zoo.json"
    found = json.loads(path.read_text("utf-8"))["table"] if path.exists() else {}
    return {name: {o: (status, why) for o, (status, why) in row.items()} for name, row in found.items()}


if __name__ == "__main__":
    main()
