"""`python -m benchmarks.zoo`: every operation on every model, and the table of what works."""

import argparse
import collections
import concurrent.futures
import importlib.util
import time

from benchmarks.common import save
from benchmarks.zoo.run import FAILS, REFUSED, SENSELESS, WORKS, WRONG, Outcome, tried


def main() -> None:
    from benchmarks.zoo.operations import OPERATIONS, entries

    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__)
    parser.add_argument("--models", nargs="*", help="those whose names begin so; all if not given")
    parser.add_argument("--operations", nargs="*", choices=list(OPERATIONS), default=list(OPERATIONS))
    parser.add_argument("--generation", choices=("tf_keras", "keras"))
    parser.add_argument("--workers", type=int, default=2)
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
    table: dict[str, dict[str, Outcome]] = {}
    started = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(given.workers) as pool:
        waiting = {
            pool.submit(tried, name, generation, given.operations): (name, generation) for name, generation in pairs
        }
        for future in concurrent.futures.as_completed(waiting):
            name, generation = waiting[future]
            table[f"{name} ({generation})"] = found = future.result()
            marks = "".join(
                {WORKS: "+", REFUSED: "o", FAILS: "X", WRONG: "W", SENSELESS: "."}[found[o][0]]
                for o in given.operations
            )
            print(f"{marks} {name} ({generation})", flush=True)
            for operation, (status, why) in found.items():
                if status not in (WORKS, SENSELESS):
                    print(f"    {operation} {status}: {why[:300]}", flush=True)
    counts = collections.Counter(status for found in table.values() for status, _ in found.values())
    asked = sum(counts.values()) - counts[SENSELESS]
    share, took = counts[WORKS] / max(asked, 1), time.monotonic() - started
    print(f"{len(table)} models, {dict(counts)}: {share:.1%} of {asked} work, {took:.0f} s")
    if not given.models and len(given.operations) == len(OPERATIONS) and given.generation is None:
        rows = {name: {o: list(outcome) for o, outcome in found.items()} for name, found in sorted(table.items())}
        save("zoo", {"models": len(table), "counts": dict(counts), "works": round(share, 4), "table": rows})


if __name__ == "__main__":
    main()
