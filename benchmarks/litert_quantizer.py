"""litert-quantizer's own recipes beside ours, its Hadamard rotation included, on a trained language model.

Every file is of the same float file of LLaMA's shape with 260,000 parameters, and reads texts that the model says
itself: mean divergence from it, in nats, and bytes.

    python -m benchmarks.litert_quantizer --model tinystories260k
"""

import argparse
import dataclasses
import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import tfopt
from benchmarks.common import save, show
from tfopt.export.said import said_by
from tfopt.numerics.agreement import MEASURES, divergence
from tfopt.quantization.config import NAMED
from tfopt.runtime.tflite_decoder import TFLiteDecoder

TEXTS, LENGTH, SLOTS = 4, 200, 256
THEIRS = ("dynamic_wi8_afp32", "dynamic_wi8_afp32_hadamard", "dynamic_wi4_afp32_hadamard")
_GPTQ = dataclasses.replace(NAMED["dynamic_int4_block32"], rounding="gptq", table_bits=8)
OURS: dict[str, Any] = {
    "dynamic_int8": "dynamic_int8", "int4 blocks, GPTQ": _GPTQ,
    "int4 blocks, rotated, GPTQ": dataclasses.replace(_GPTQ, rotate=True),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="anything that from_pretrained reads")
    given = parser.parse_args()
    model = tfopt.models.from_pretrained(given.model)
    ids = said_by(model, LENGTH, seed=5, rows=TEXTS)
    reference = np.asarray(model({"input_ids": ids, "attention_mask": np.ones_like(ids)}, training=False))
    rows = {}
    with tempfile.TemporaryDirectory() as name:
        path, plain = Path(name, "m.tflite"), Path(name, "float.tflite")
        tfopt.export(model, plain, lengths=[SLOTS])
        for recipe in THEIRS:
            _quantized(plain, recipe, path)
            rows[f"litert-quantizer, {recipe}"] = _row(path, ids, reference)
        for kind, quantization in OURS.items():
            tfopt.export(model, path, quantization=quantization, lengths=[SLOTS], accept=MEASURES)
            rows[f"tfopt, {kind}"] = _row(path, ids, reference)
    show(rows)
    save("litert_quantizer", {"files": rows})


def _quantized(plain: Path, recipe: str, path: Path) -> None:
    from litert_quantizer import quantizer

    spec = importlib.util.find_spec("litert_quantizer")
    assert spec is not None and spec.submodule_search_locations
    recipes = Path(spec.submodule_search_locations[0], "recipes")
    quantizer.Quantizer(str(plain), str(recipes / f"{recipe}_recipe.json")).quantize().export_model(
        str(path), overwrite=True
    )


def _row(path: Path, ids: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
    decoder, found = TFLiteDecoder(path), []
    for row in ids:
        with decoder.open([0]) as session:
            found.append(session.extend(row[None], every=True)[0])
    return {"divergence": round(float(divergence(np.stack(found), reference)), 4), "bytes": path.stat().st_size}


if __name__ == "__main__":
    main()
