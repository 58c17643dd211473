"""Recipes whose variants are physically smaller; a file of its own, so that workers share the runs."""

import tfopt
from tfopt import keras_api
from tfopt.pipeline import run
from tfopt.verification import verify_run

SMALLER = [
    {"name": "short", "shrink": {"heads": 0.5, "neurons": 0.5, "importance": "first_order"},
     "distill": {"labels": 0.5, "cache": True}, "train": {"epochs": 1, "batch_size": 16, "learning_rate": 1e-3}},
    {"name": "short4", "start": "short", "prune": {"sparsity": 0.5, "frequency": 4}, "quantize": {"weight_bits": 4},
     "distill": {"temperature": 2.0}, "train": {"epochs": 1, "batch_size": 16, "learning_rate": 1e-3}},
    {"name": "gradual", "shrink": {"neurons": 0.5, "when": "during", "frequency": 4},
     "train": {"epochs": 1, "batch_size": 16, "learning_rate": 1e-3}},
]  # fmt: skip


def test_variants_get_smaller_learn_from_the_baseline_and_build_on_each_other(tiny_recipe, tmp_path, generation):
    changes = {
        "generation": generation, "variants": SMALLER,
        "exports": [{"format": "tflite", "of": ["baseline", "short", "gradual"]},
                    {"format": "tflite", "quantization": "trained"}],
    }  # fmt: skip
    report = run(tfopt.Recipe.load(tiny_recipe()).with_changes(changes), tmp_path / "run")
    assert all(m.quality["accuracy"] > 0.85 for m in report.artifacts)
    sizes = {m.name: m.bytes for m in report.artifacts}
    assert sizes["short_tflite"] < sizes["baseline_tflite"] and sizes["gradual_tflite"] < sizes["baseline_tflite"]
    trained = report.artifact("short4_tflite_trained")
    assert 4 in {layer["bits"] for layer in trained.layers} and trained.kernel_sparsity > 0.4
    shapes = {
        w.path: tuple(w.variable.shape)
        for w in keras_api.weights(tfopt.models.load(tmp_path / "run" / "short4" / "model.keras"))
    }
    assert shapes["layer_0_attention_query/kernel"] == (32, 16) and shapes["layer_0_intermediate/kernel"] == (
        32,
        32,
    )
    verify_run(tmp_path / "run")
