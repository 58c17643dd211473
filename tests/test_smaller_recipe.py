"""Recipes whose variants are physically smaller; a file of its own, so that workers share the runs."""

import shutil

import numpy as np
import pytest

import tfopt
from tfopt._keras import keras_api
from tfopt.data.tokenizers import load_tokenizer
from tfopt.errors import InputError
from tfopt.run.pipeline import run
from tfopt.run.verification import verify_run

SMALLER = [
    {"name": "short",
     "shrink": {"heads": 0.5, "neurons": 0.5, "pool_early": True, "importance": "first_order"},
     "distill": {"labels": 0.5, "cache": True}, "train": {"epochs": 1, "batch_size": 16, "learning_rate": 1e-3}},
    {"name": "short4", "start": "short", "prune": {"sparsity": 0.5, "frequency": 4}, "quantize": {"weight_bits": 4},
     "distill": {"temperature": 2.0}, "train": {"epochs": 1, "batch_size": 16, "learning_rate": 1e-3}},
    {"name": "gradual", "shrink": {"neurons": 0.5, "when": "during", "frequency": 4},
     "train": {"epochs": 1, "batch_size": 16, "learning_rate": 1e-3}},
]  # fmt: skip


def test_variants_get_smaller_learn_from_the_baseline_and_build_on_each_other(tiny_recipe, tmp_path):
    changes = {
        "generation": "keras", "variants": SMALLER, "measure.memory": False,
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


def test_a_finished_run_goes_on_without_training_and_with_adapters(finished_run, tmp_path):
    """A Keras file and packed data as they are; units, ranks, zeros and bits by layer."""
    values = {
        "schema": 1, "name": "more", "measure": {"memory": False, "rounds": 5, "seconds": 0.05}, "data": {"source": "packed", "folder": str(finished_run / "data"), "max_length": 16},
        "model": {"kind": "keras", "file": str(finished_run / "baseline" / "model.keras")}, "train": {"epochs": 0},
        "variants": [
            {"name": "once", "train": {"epochs": 0}, "shrink": {"neurons": {"layer_0_intermediate": 0.25}},
             "factorize": {"rank": {"layer_0_attention_output/kernel": 12}, "weighted": True},
             "prune": [{"sparsity": 0.5, "include": ["layer_0_output"]}, {"sparsity": 0.75, "include": ["*_value"]}]},
            {"name": "adapted", "lora": {"rank": 2, "whole": ["logits"]}, "train": {"epochs": 1, "batch_size": 16}},
        ],
        "exports": [{"format": "tflite", "quantization": "dynamic_int8", "bits": {"layer_0_output/kernel": 4},
                     "of": ["once"]}],
    }  # fmt: skip
    source = tfopt.Recipe.model_validate(values)
    assert tfopt.Recipe.parse(source.to_toml()) == source
    report = run(source, tmp_path / "run")
    before = tfopt.Report.load(finished_run / "report.json")
    assert report.artifact("baseline").quality == before.artifact("baseline").quality
    file = report.artifact("once_tflite_dynamic_int8_mixed")
    assert {layer["path"]: layer["bits"] for layer in file.layers}["layer_0_output/kernel"] == 4
    assert file.bytes_entropy <= file.bytes_packed < file.bytes_gzip < file.bytes
    weights = {
        w.path: keras_api.to_numpy(w.variable)
        for w in keras_api.weights(tfopt.models.load(tmp_path / "run" / "once" / "model.keras"))
    }
    assert weights["layer_0_attention_output_low/kernel"].shape[1] == 12
    assert abs((weights["layer_0_output/kernel"] == 0).mean() - 0.5) < 0.01
    assert abs((weights["layer_0_attention_value/kernel"] == 0).mean() - 0.75) < 0.01
    adapted = {
        w.path: keras_api.to_numpy(w.variable)
        for w in keras_api.weights(tfopt.models.load(tmp_path / "run" / "adapted" / "model.keras"))
    }
    base = {
        w.path: keras_api.to_numpy(w.variable)
        for w in keras_api.weights(tfopt.models.load(finished_run / "baseline" / "model.keras"))
    }
    assert adapted.keys() == base.keys()
    changed = {path for path in base if not np.array_equal(base[path], adapted[path])}
    assert "logits/bias" in changed and not any("norm" in path or "embeddings" in path for path in changed)
    verify_run(tmp_path / "run")


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ({"lora": {}, "prune": {"sparsity": 0.5}}, "put prune into a variant with start = 'v'"),
        ({"lora": {}, "train": {"epochs": 0}}, "section lora needs train.epochs of 1 or more, got 0"),
        ({"quantize": {}, "train": {"epochs": 0}}, "section quantize needs train.epochs"),
        ({"factorize": {"rank": 4, "energy": 0.5}}, "give one of rank, energy and max_bytes"),
        (
            {"factorize": {"rank": 4}, "shrink": {"neurons": 0.5, "when": "during"}},
            "would undo what factorize does",
        ),
        ({"shrink": {"heads": {"a": 1.0}}}, "heads must be in"),
        ({"shrink": {"heads": {"a": 0.0}}}, "nothing to take out"),
        ({"prune": []}, "variants.0.prune: "),
        ({}, "needs one of the sections"),
    ],
)
def test_sections_that_make_no_sense_are_refused(variant, message):
    with pytest.raises(InputError, match=message):
        tfopt.Recipe.load("demo").with_changes({"variants": [{"name": "v", **variant}], "exports": []})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.folder": "x"}, "data.folder was given, but data.source is 'stdlib_docs'; set it to 'packed'"),
        ({"model.file": "x"}, "model.file was given, but model.kind is 'fresh'; set it to 'keras'"),
        ({"train.epochs": 0}, "a model of kind 'fresh' has to be trained"),
        (
            {"data.source": "packed", "data.folder": "x", "data.train": "y"},
            "data.train, data.validation and data.tokenizer are",
        ),
        ({"exports": [{"format": "tflite", "quantization": "dynamic_int8", "bits": {"*": 99}}]}, "got 99"),
    ],
)
def test_sources_that_disagree_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        tfopt.Recipe.load("demo").with_changes(changes)


def test_the_model_of_a_recipe_can_be_exchanged_for_one_of_another_kind():
    source = tfopt.Recipe.load("minilm-sst2").with_changes({"model.folder": "x", "model.kind": "pretrained"})
    changed = source.with_changes({"model.file": "m.keras", "model.kind": "keras"})
    assert changed.model.folder is None and changed.model.file == "m.keras"


def test_packed_data_has_to_fit(finished_run, tmp_path):
    values = {
        "schema": 1, "name": "x", "data": {"source": "packed", "folder": str(finished_run / "data"), "max_length": 16},
        "model": {"kind": "keras", "file": str(finished_run / "baseline" / "model.keras")}, "train": {"epochs": 0},
    }  # fmt: skip
    longer = {**values, "data": {**values["data"], "max_length": 400}}
    with pytest.raises(InputError, match="does not take 400 tokens"):
        run(tfopt.Recipe.model_validate(longer), tmp_path / "a")
    copied = tmp_path / "data"
    shutil.copytree(finished_run / "data", copied)
    (copied / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="tokenizer"):
        run(
            tfopt.Recipe.model_validate({**values, "data": {**values["data"], "folder": str(copied)}}),
            tmp_path / "b",
        )
    assert not (tmp_path / "b").exists()


def test_a_vocabulary_is_cut_to_the_training_texts(finished_run, labelled_tsv, tmp_path):
    train, validation = labelled_tsv
    values = {
        "schema": 1, "name": "cut", "train": {"epochs": 0}, "exports": [{"format": "tflite"}],
        "measure": {"memory": False, "rounds": 5, "seconds": 0.05},
        "data": {"train": str(train), "validation": str(validation), "max_length": 16, "on_long": "truncate",
                 "tokenizer": str(finished_run / "data"), "least_count": 400},
        "model": {"kind": "keras", "file": str(finished_run / "baseline" / "model.keras")},
    }  # fmt: skip
    run(tfopt.Recipe.model_validate(values), tmp_path / "run")
    rows = len(np.load(tmp_path / "run" / "data" / "kept_tokens.npy"))
    model = tfopt.models.load(tmp_path / "run" / "baseline" / "model.keras")
    assert (
        next(w for w in keras_api.weights(model) if w.path == "word_embeddings/embeddings").variable.shape[0]
        == rows
    )
    assert rows == load_tokenizer(tmp_path / "run" / "data").get_vocab_size()
    assert rows < load_tokenizer(finished_run / "data").get_vocab_size()
    verify_run(tmp_path / "run")
    with pytest.raises(InputError, match="data.least_count cuts the vocabulary of a classifier that is given"):
        tfopt.Recipe.load("demo").with_changes({"data.least_count": 2})
