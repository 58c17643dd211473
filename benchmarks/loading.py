"""Loads a TFLite file that generates, with and without XNNPACK's cache of packed weights in memory.

    python -m benchmarks.loading model.tflite

Without a cache, the weights are packed anew for every signature. Each load has a process of its own, in turns;
memory is what that process has for itself once the file is loaded, packed weights included.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.common import ratio, save
from benchmarks.streamed_export import memory_of

_ROUNDS = 5


def load(path: str, cache: str) -> None:
    """The child's side: prints seconds and bytes."""
    import os

    from ai_edge_litert import compiled_model as litert

    before = memory_of(os.getpid())[0]
    cpu = litert.CpuOptions(num_threads=1, xnnpack_weight_cache_path=cache)
    options = litert.Options(hardware_accelerators=litert.HardwareAccelerator.CPU, cpu_options=cpu)
    started = time.perf_counter()
    model = litert.CompiledModel.from_file(path, options=options)
    seconds = time.perf_counter() - started
    print(json.dumps([seconds, memory_of(os.getpid())[0] - before, len(model.get_signature_list())]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        load(str(given.model), given.child)
        return
    found: dict[str, list[list[float]]] = {"": [], ":memory": []}
    for _ in range(_ROUNDS):
        for cache, rows in found.items():
            command = [sys.executable, "-m", "benchmarks.loading", str(given.model), f"--child={cache}"]
            output = subprocess.run(command, capture_output=True, check=True, text=True).stdout
            rows.append(json.loads(output.splitlines()[-1]))
    (without, cached) = (np.array(rows) for rows in found.values())
    figures = {
        "file": given.model.name, "bytes": given.model.stat().st_size, "signatures": int(without[0, 2]),
        "seconds": [round(float(np.median(rows[:, 0])), 2) for rows in (without, cached)],
        "own_bytes": [int(np.median(rows[:, 1])) for rows in (without, cached)],
        "times_as_fast": ratio(without[:, 0], cached[:, 0]),
    }  # fmt: skip
    print(figures)
    save("loading", {"order": ["without", "cached"], **figures})


if __name__ == "__main__":
    main()
