"""What every benchmark shares: paired rounds, medians with their spread, and a result file."""

import argparse
import json
import random
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfopt._base.files import write_json
from tfopt.report import machine_info

RESULTS = Path(__file__).parent / "results"


def paired(contestants: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int = 2) -> dict[str, np.ndarray]:
    """Seconds of every contestant in every round; all run once per round, in a new order each time."""
    for work in contestants.values():
        for _ in range(warm_up):
            work()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    rng = random.Random(0)
    for _ in range(rounds):
        for name in rng.sample(list(contestants), len(contestants)):
            started = time.perf_counter()
            contestants[name]()
            seconds[name].append(time.perf_counter() - started)
    return {name: np.array(values) for name, values in seconds.items()}


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> dict[str, float]:
    """Median of the ratios within the rounds, with the quartiles."""
    low, middle, high = np.percentile(numerator / denominator, [25, 50, 75])
    return {"median": round(float(middle), 4), "q1": round(float(low), 4), "q3": round(float(high), 4)}


def milliseconds(seconds: np.ndarray) -> dict[str, float]:
    """Median and quartiles in milliseconds."""
    low, middle, high = np.percentile(seconds * 1e3, [25, 50, 75])
    return {"median": round(float(middle), 4), "q1": round(float(low), 4), "q3": round(float(high), 4)}


def goal(name: str, reached: float, limit: float, at_most: bool = False) -> dict[str, Any]:
    """One line of the issue's list: what was asked for, what was reached."""
    met = reached <= limit if at_most else reached >= limit
    sign = "<=" if at_most else ">="
    print(f"{'met   ' if met else 'MISSED'} {name}: {reached:.3f} (asked {sign} {limit:g})")
    return {"goal": name, "reached": round(reached, 4), "asked": f"{sign} {limit:g}", "met": met}


def save(name: str, values: dict[str, Any]) -> None:
    """Writes `results/<name>.json` with the machine, the versions and the command."""
    program = Path(sys.argv[0])
    module = program.parent.name if program.stem == "__main__" else program.stem
    command = f"python -m benchmarks.{module}" + "".join(" " + shlex.quote(a) for a in sys.argv[1:])
    path = write_json(RESULTS / f"{name}.json", {"command": command, "machine": machine_info(), **values})
    print(f"wrote {path}")


def show(values: Mapping[str, Any]) -> None:
    """Prints nested figures a line each."""
    for name, value in values.items():
        print(f"{name:44} {json.dumps(value)}")


def sst2_arguments(description: str | None, rounds: int) -> argparse.Namespace:
    """Arguments of a script that reads texts of SST-2: `train`, `tokenizer` and `rounds`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=rounds)
    return parser.parse_args()
