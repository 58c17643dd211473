"""Whole commands of this checkout against those of an earlier one, in turns.

    git worktree add /tmp/earlier 474c59e
    python -m benchmarks.commands --earlier /tmp/earlier [--rounds 5] [--demos 2]

`tfopt export` of the demo's model in three kinds, and `tfopt demo` from start to report.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import goal, paired, ratio, save

HERE = Path(__file__).parents[1]
KINDS = {
    "float SavedModel": ("--format", "saved_model"),
    "float32 TFLite": ("--format", "tflite"),
    "int8 TFLite": ("--format", "tflite", "--quantization", "dynamic_int8"),
}


def command(checkout: Path, *arguments: str) -> None:
    """Runs `tfopt` of a checkout with this interpreter."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(
        [sys.executable, "-m", "tfopt", *arguments], cwd=checkout, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"tfopt {' '.join(arguments)} of {checkout} failed: {done.stderr[-500:]}")


def seconds(checkout: Path, out: Path) -> float:
    started = time.perf_counter()
    command(checkout, "demo", "--out", str(out))
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--earlier", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--demos", type=int, default=2)
    arguments = parser.parse_args()
    earlier = arguments.earlier.resolve()
    found: dict[str, Any] = {"goals": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        times = {"now": [], "earlier": []}  # type: dict[str, list[float]]
        for turn in range(max(arguments.demos, 1)):
            for name, checkout in (("now", HERE), ("earlier", earlier)):
                times[name].append(seconds(checkout, folder / f"{name}_{turn}"))
        found["demo, now / earlier"] = ratio(np.array(times["now"]), np.array(times["earlier"]))
        found["demo, seconds"] = times
        found["goals"].append(goal("demo", found["demo, now / earlier"]["median"], 0.75, at_most=True))
        model = next((folder / "now_0").rglob("baseline/model.keras"))
        for kind, options in KINDS.items():
            out = folder / ("m.tflite" if "TFLite" in kind else "m")
            work = {
                name: lambda checkout=checkout, out=out, options=options: command(
                    checkout, "export", str(model), *options, "-o", str(out)
                )
                for name, checkout in (("now", HERE), ("earlier", earlier))
            }
            taken = paired(work, arguments.rounds, warm_up=1)
            found[f"export, {kind}, now / earlier"] = ratio(taken["now"], taken["earlier"])
            found[f"export, {kind}, seconds"] = {name: round(float(np.median(t)), 2) for name, t in taken.items()}
            reached = found[f"export, {kind}, now / earlier"]["median"]
            found["goals"].append(goal(f"export, {kind}", reached, 0.6, at_most=True))
    save("commands", found)


if __name__ == "__main__":
    main()
