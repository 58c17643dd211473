"""Options of recipes that concern several parts: mixed sources, workers, trackers, and files beside a variant."""

import json

import numpy as np
import pytest

import tfopt
from benchmarks.task_data import WRITERS
from tests.conftest import without_exports
from tfopt._keras import keras_api
from tfopt._keras.loading import load_model
from tfopt.compress.adapters import Adapters
from tfopt.data.records.manifest import splits
from tfopt.errors import InputError
from tfopt.recipe import Recipe
from tfopt.run import pipeline
from tfopt.run.pipeline import run
from tfopt.tasks import TASKS, task_of
from tfopt.train import trackers


def written(task, tmp_path, labelled_tsv):
    """Files for training, for mixing and for validation of a task."""
    if task == "classification":
        train, validation = labelled_tsv
        lines = train.read_text().splitlines()
        other = tmp_path / "other.tsv"
        other.write_text("\n".join([lines[0], *lines[1:31]]) + "\n")
        return train, other, validation
    if task == "causal_lm":
        paths = [tmp_path / f"{name}.txt" for name in ("train", "other", "validation")]
        for number, path in enumerate(paths):
            path.write_text("\n".join(f"line {number} {i} of a text that is long enough" for i in range(60)))
        return paths
    files = {"train": 60, "other": 20, "validation": 24}
    return [WRITERS[task](tmp_path / f"{name}.jsonl", n, seed) for seed, (name, n) in enumerate(files.items())]


@pytest.mark.parametrize("task", TASKS)
def test_sources_are_mixed_in_the_training_of_every_task(task, tmp_path, labelled_tsv):
    train, other, validation = written(task, tmp_path, labelled_tsv)
    data = {"train": str(train), "validation": str(validation), "mix": {str(other): 2.0}, "max_length": 48,
            "vocab_size": 400}  # fmt: skip
    if task == "multi_task":
        data["label_columns"] = ["topic", "mood"]
    model = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    recipe = Recipe.model_validate({"schema": 1, "name": "m", "task": task, "data": data, "model": model})
    found = task_of(recipe, tmp_path / "data")
    assert {train, other, validation} <= set(found.check_inputs())
    facts = found.pack(lambda line: None)
    assert splits(tmp_path / "data") == ["train", "train-1", "validation"]
    plain = task_of(recipe.with_changes({"data.mix": {}}), tmp_path / "plain")
    alone = plain.pack(lambda line: None)
    assert (
        facts["train_records"] > alone["train_records"]
        and facts["validation_records"] == alone["validation_records"]
    )

    def rows(task, split, epoch=0):
        batches = task.batches(8, split, shuffle=split == "train", epoch=epoch)
        return [tuple(i for i in row if i) for inputs, _ in batches for row in inputs["input_ids"].numpy().tolist()]

    passes = [rows(found, "train", epoch) for epoch in range(3)]
    assert all(len(one) == facts["train_records"] for one in passes) and passes[0] != passes[1]
    assert len(rows(found, "validation")) == facts["validation_records"]
    assert len(next(iter(found.calibration().values()))) > 0
    found.build(facts)


def test_mixing_that_makes_no_sense(tmp_path, labelled_tsv):
    train, validation = labelled_tsv
    base = {"schema": 1, "name": "m", "data": {"train": str(train), "validation": str(validation)}}
    for changes, said in (
        ({"data.mix": {str(train): 0}}, "greater than 0"), ({"data.mix": {"a": 1}, "data.source": "stdlib_docs"}, "goes with"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            Recipe.model_validate(base).with_changes(changes)
    recipe = Recipe.model_validate(base).with_changes({"data.mix": {str(tmp_path / "none.tsv"): 1}})
    with pytest.raises(InputError, match=r"data to mix not found: .*none.tsv"):
        run(recipe, tmp_path / "run")
    mixed = Recipe.model_validate(base).with_changes({"data.mix": {str(train): 1}})
    task_of(mixed, tmp_path / "data").pack(lambda line: None)
    packed = {"source": "packed", "folder": str(tmp_path / "data")}
    with pytest.raises(InputError, match="holds texts of several files that were mixed"):
        run(Recipe.model_validate({"schema": 1, "name": "m", "data": packed}), tmp_path / "run")


def test_workers_trackers_and_adapters_of_a_run(tiny_recipe, tmp_path, monkeypatch):
    """By two processes it ends as by one; MLflow has a run of each training; the adapter makes the variant."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    text = without_exports(tiny_recipe().read_text(), '[[exports]]\nformat = "tflite"\nquantization = "int8"\n')
    head, measured = text[: text.index("[[variants]]")], text[text.index("[[exports]]") :]
    variants = """
[[variants]]
name = "taught"
[variants.train]
epochs = 1
[variants.distill]
cache = true
[[variants]]
name = "thin"
[variants.train]
epochs = 1
[variants.lora]
rank = 2
"""
    variants = variants.replace("epochs = 1", "epochs = 1\nbatch_size = 16")
    text = head + variants + measured.replace("[measure]", "[measure]\nmemory = false")
    reports = {}
    for count in (1, 2):
        top = text + f"[workers]\ncount = {count}\n"
        path = tmp_path / f"{count}.toml"
        path.write_text(top.replace("[train]\n", '[train]\ntrackers = ["mlflow"]\n', 1) if count == 2 else top)
        reports[count] = run(path, tmp_path / f"run-{count}", log=lambda line: None)
    one, two = ({a.name: a.quality for a in reports[count].artifacts} for count in (1, 2))
    assert one == two
    ids = np.random.default_rng(0).integers(3, 200, (8, 16)).astype(np.int32)
    asked = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    for name in ("baseline", "taught", "thin"):
        files = [tmp_path / run / f"{name}_tflite_int8" / "model.tflite" for run in ("run-1", "run-2")]
        ours, theirs = (tfopt.Predictor.load(file).predict(asked)["logits"] for file in files)
        np.testing.assert_array_equal(ours, theirs)  # the same weights, and the same ranges
    (tracked,) = mlflow.MlflowClient().search_runs(["0"])
    assert tracked.info.run_name == "baseline" and tracked.data.metrics["val_accuracy"] > 0.5

    base, thin = (load_model(tmp_path / "run-2" / name / "model.keras") for name in ("baseline", "thin"))
    Adapters(base, {"thin": tmp_path / "run-2" / "thin" / "adapter.safetensors"}).use("thin")
    for ours, theirs in zip(keras_api.weights(base), keras_api.weights(thin), strict=True):
        np.testing.assert_allclose(
            keras_api.to_numpy(ours.variable), keras_api.to_numpy(theirs.variable), atol=1e-6
        )
    manifest = json.loads((tmp_path / "run-2" / "manifest.json").read_text())
    assert (
        "thin/adapter.safetensors" in json.dumps(manifest)
        and not (tmp_path / "run-2" / "taught" / "adapter.safetensors").exists()
    )


def test_a_package_that_is_missing_is_told_before_anything_is_written(tiny_recipe, tmp_path, monkeypatch):
    recipe = Recipe.load(tiny_recipe())
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    for changes, said in (
        ({"train.trackers": ["wandb"]}, r"pip install 'tfopt\[wandb\]'"), ({"workers.through": "ray"}, r"pip install 'tfopt\[ray\]'"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            pipeline.run(recipe.with_changes(changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="did you mean 'mlflow'"):
        recipe.with_changes({"train.trackers": ["mlfow"]})
    with pytest.raises(InputError, match="tracker must be one of mlflow, wandb"):
        trackers.check_trackers(["tensorbord"])
