"""The tasks of encoders end to end, on data made by `task_data`: from rows to a report.

    python -m benchmarks.tasks [--work DIR]

Prints and keeps the quality of every artifact.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import save
from benchmarks.task_data import WRITERS
from tfopt import Recipe, run
from tfopt.tasks import TASKS

EPOCHS = {"token_classification": 4, "question_answering": 24, "multi_task": 4}


def recipe_of(task: str, folder: Path) -> Recipe:
    """A small encoder, a pruned variant, and files of 8 bits."""
    data: dict[str, Any] = {
        split: str(WRITERS[task](folder / f"{task}_{split}.jsonl", count, seed))
        for seed, (split, count) in enumerate((("train", 2000), ("validation", 500)))
    }
    data |= {"max_length": 32, "vocab_size": 400}
    if task == "multi_task":
        data["label_columns"] = ["topic", "mood"]
    training = {"batch_size": 32, "learning_rate": 3e-3}
    return Recipe.model_validate({
        "schema": 1, "name": task, "task": task, "lengths": [16, 32], "data": data,
        "model": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
                  "dropout": 0.0},
        "train": {"epochs": EPOCHS[task], **training},
        "variants": [{"name": "half", "prune": {"sparsity": 0.5, "frequency": 4},
                      "train": {"epochs": 2, "batch_size": 32, "learning_rate": 1e-3}}],
        "exports": [{"format": "tflite"}, {"format": "tflite", "quantization": "dynamic_int8"}],
        "measure": {"rounds": 20, "length": 32},
    })  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=None)
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        for task in WRITERS:
            report = run(recipe_of(task, work), work / task, overwrite=True)
            found[task] = {m.name: m.quality for m in report.artifacts}
            for name, quality in found[task].items():
                shown = ", ".join(f"{metric} {quality[metric]:.3f}" for metric in TASKS[task].metrics)
                print(f"{task}: {name}: {shown}")
    save("tasks", found)


if __name__ == "__main__":
    main()
