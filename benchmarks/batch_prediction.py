"""Batch prediction by two actors of Ray Data, and by two processes, against one process; all write records.

An encoder of six layers as a TFLite file, one thread in each process. Ray's cluster is started before and stays;
every job starts its own actors or processes, which load the file.

    python -m benchmarks.batch_prediction
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

import tfopt
from benchmarks.common import goal, paired, ratio, save, show
from benchmarks.training import LENGTH, SETTINGS, VOCABULARY
from tfopt import Workers
from tfopt._base.ray_actors import cluster
from tfopt.models import BertConfig, bert


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=32_768)
    given = parser.parse_args()
    ids = np.random.default_rng(0).integers(3, VOCABULARY, (given.rows, LENGTH)).astype(np.int32)
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    who = {"one process": Workers(), "two processes": Workers(2), "two actors": Workers(2, "ray")}
    with tempfile.TemporaryDirectory() as folder, cluster(2):
        model = bert(BertConfig(**SETTINGS), 2, generation="tf_keras")
        path = tfopt.export(model, Path(folder, "model.tflite"), lengths=[LENGTH]).path

        def job(workers: Workers) -> None:
            tfopt.batch_predict(path, inputs, out=Path(folder, "out"), workers=workers, threads=1)

        seconds = paired(
            {name: lambda workers=workers: job(workers) for name, workers in who.items()}, given.rounds, warm_up=1
        )
    rows = {
        "rows a second, one process": round(given.rows / float(np.median(seconds["one process"])), 1),
        "one process / two actors": ratio(seconds["one process"], seconds["two actors"]),
        "one process / two processes": ratio(seconds["one process"], seconds["two processes"]),
    }
    show(rows)
    reached = rows["one process / two actors"]["median"]
    save("batch_prediction", {"rows": rows, "goals": [goal("two actors of Ray Data", reached, 1.7)]})


if __name__ == "__main__":
    main()
