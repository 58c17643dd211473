"""`python -m tfopt.runtime ARTIFACT INPUTS OUTPUTS THREADS`: the child's side of `tfopt.child`."""

import json
import sys

import numpy as np

from tfopt.runtime import Predictor
from tfopt.runtime.memory import peak_memory_bytes


def main(artifact: str, inputs: str, outputs: str, threads: str) -> None:
    with np.load(inputs) as stored:
        values = {name: stored[name] for name in stored.files}
    results = Predictor.load(artifact, threads=int(threads) or None).try_out(values)
    np.savez(outputs, **results)  # type: ignore[arg-type]
    sys.stdout.write("\n" + json.dumps({"peak_memory_bytes": peak_memory_bytes()}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
