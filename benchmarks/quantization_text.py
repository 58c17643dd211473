"""A trained causal language model in every kind of weights: perplexity of held-out text, bytes, greedy agreement.

    python -m benchmarks.quantization_text RUN

RUN is the folder of a finished `tfopt run tiny-lm --train tinyshakespeare.txt`.
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import save, show
from benchmarks.quantization_sst2 import NEAREST4
from tfopt import Predictor, Recipe, export
from tfopt._keras.loading import load_model
from tfopt.measure.perplexity import predict_text
from tfopt.measure.text import greedy_agreement
from tfopt.quantization import NAMED
from tfopt.tasks import task_of

KINDS: dict[str, Any] = {
    "float32": None,
    "float16": "float16",
    "int8 dynamic": "dynamic_int8",
    "int8 weights only": "weight_only_int8",
    "int4 channel, nearest": NEAREST4,
    "int4 channel, clipped": "dynamic_int4",
    "int4 channel, GPTQ": dataclasses.replace(NAMED["dynamic_int4"], rounding="gptq"),
    "int4 block 32, clipped": "dynamic_int4_block32",
    "int4 block 32, GPTQ": dataclasses.replace(NAMED["dynamic_int4_block32"], rounding="gptq"),
    "int4 weights only": "weight_only_int4",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    run: Path = parser.parse_args().run
    recipe = Recipe.load(run / "recipe.toml")
    task = task_of(recipe, run / "data")
    held_out = task.held_out()
    assert held_out.text is not None and held_out.window is not None
    with tempfile.TemporaryDirectory() as folder:
        files = _exported(run, Path(folder), task)
        rows = {name: _measured(path, held_out.text, held_out.window) for name, path in files.items()}
        decoders = {name: Predictor.load(path).make_decoder() for name, path in files.items()}
        agreement = greedy_agreement(decoders, held_out.text, held_out.window)
    for name, row in rows.items():
        row["greedy_agreement"] = round(agreement[name]["greedy_agreement"], 4)
    show(rows)
    save("quantization_text", {"tokens": len(held_out.text) - 1, "window": held_out.window, "files": rows})


def _exported(run: Path, folder: Path, task: Any) -> dict[str, Path]:
    """Every kind of the float model, the float one with an int8 cache, and the variant trained for 4 bits."""
    model = load_model(run / "baseline" / "model.keras")
    wanted = {name: (model, kind, "float32") for name, kind in KINDS.items()}
    wanted["float32, int8 cache"] = (model, None, "int8")
    wanted["int8 dynamic, int8 cache"] = (model, "dynamic_int8", "int8")
    trained = load_model(run / "trained4" / "model.keras")
    wanted["int4 channel, trained"] = (trained, "trained", "float32")
    files = {}
    for number, (name, (source, kind, cache)) in enumerate(wanted.items()):
        files[name] = folder / f"{number}.tflite"
        export(
            source, files[name], format="tflite", quantization=kind, representative=task.calibration(), cache=cache
        )
    return files


def _measured(path: Path, text: np.ndarray, window: int) -> dict[str, Any]:
    predictor = Predictor.load(path)

    def logits_of(ids: np.ndarray) -> np.ndarray:
        return predictor.predict({"input_ids": ids[None], "attention_mask": np.ones_like(ids[None])})["logits"][0]

    found = predict_text(logits_of, window, text).perplexity
    return {
        "perplexity": round(found.perplexity, 3), "next_token_accuracy": round(found.next_token_accuracy, 4),
        "bytes": path.stat().st_size,
    }  # fmt: skip


if __name__ == "__main__":
    main()
