"""`python -m tfopt.runtime ARTIFACT INPUTS OUTPUTS THREADS`: the child's side of `tfopt.child`."""

import json
import sys
import time

import numpy as np

from tfopt.runtime import Predictor
from tfopt.runtime.memory import peak_memory_bytes


def main(artifact: str, inputs: str, outputs: str, threads: str) -> None:
    with np.load(inputs) as stored:
        values = {name: stored[name] for name in stored.files}
    predictor_class = Predictor.class_for(artifact)  # imports come first, so that loading alone is timed
    started = time.perf_counter()
    predictor = predictor_class(artifact, threads=int(threads) or None)
    seconds = time.perf_counter() - started
    results = predictor.predict(values)
    np.savez(outputs, **results)  # type: ignore[arg-type]
    facts = {"peak_memory_bytes": peak_memory_bytes(), "load_seconds": seconds}
    sys.stdout.write("\n" + json.dumps(facts) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
