import contextlib
import json
import os
import signal
import threading
import time

import numpy as np
import pytest

import tfopt
from tfopt._base.children import WARM, ChildFailedError, run_in_child
from tfopt._base.files import sha256, tree_digest
from tfopt._keras import keras_api
from tfopt.errors import DataError, InputError, VerificationError
from tfopt.recipe import Recipe
from tfopt.report import Report
from tfopt.run.folder import RunFolder
from tfopt.run.pipeline import run
from tfopt.run.verification import verify_run
from tfopt.tasks import task_of

ARTIFACTS = [
    "baseline", "baseline_keras", "baseline_tflite", "baseline_tflite_dynamic_int8",
    "baseline_tflite_dynamic_int4_gptq_mixed", "baseline_tflite_int8_smooth_mixed", "baseline_xla",
    "half_tflite", "half_tflite_dynamic_int8", "four_tflite_trained",
]  # fmt: skip


def test_a_run_writes_what_the_design_says(finished_run):
    report = Report.load(finished_run / "report.json")
    assert [
        m.name for m in report.artifacts
    ] == ARTIFACTS and report.baseline.speedup == report.baseline.shrink == 1
    for m in report.artifacts:
        assert (finished_run / m.path).exists() and m.bytes > m.bytes_gzip > 0 and m.peak_memory_bytes > 1e6
        assert m.latency_ms.p50 <= m.latency_ms.p95 <= m.latency_ms.p99 and m.throughput_per_s > 0
        assert m.quality["accuracy"] > 0.9 and m.agreement > 0.9
    assert report.artifact("baseline_tflite_dynamic_int8").shrink > report.artifact("baseline_tflite").shrink
    assert report.artifact("half_tflite").kernel_sparsity == pytest.approx(0.5, abs=0.01)
    assert report.artifact("half_tflite_dynamic_int8").weight_bits < 20
    assert report.artifact("half_tflite").max_abs_error < 1e-4
    assert [s.name for s in report.steps][:3] == ["data", "train baseline", "train half"]
    assert any("after gzip" in note for note in report.notes)
    four = report.artifact("four_tflite_trained")
    assert {x["bits"] for x in four.layers} == {4, 32} and four.kernel_sparsity >= 0.49
    assert {x["bits"] for x in report.artifact("baseline_tflite_dynamic_int4_gptq_mixed").layers} == {4, 8, 32}
    assert report.baseline.layers is None and "Bits of every layer" in (finished_run / "report.html").read_text()
    assert [s.name for s in report.steps][-1] == "measure"
    names = {p.name for p in finished_run.iterdir()}
    assert {"recipe.toml", "manifest.json", "report.json", "report.html", "plots", "baseline", "data"} <= names
    assert len(list((finished_run / "data").glob("*.tfrecord"))) == 3
    assert {p.name for p in (finished_run / "plots").iterdir()} == {
        "size_accuracy.png",
        "latency_accuracy.png",
        "training.png",
    }


def test_the_manifest_lists_every_file_with_its_hash(finished_run):
    manifest = json.loads((finished_run / "manifest.json").read_text())
    listed = {f["path"]: f["sha256"] for f in manifest["files"]}
    present = {str(p.relative_to(finished_run)) for p in finished_run.rglob("*") if p.is_file()}
    assert present - set(listed) == {"manifest.json", "state.json", "run.lock"}
    assert all(sha256(finished_run / path) == digest for path, digest in listed.items())
    assert "tensorflow" in manifest["versions"]


def test_verify_accepts_a_good_run_and_names_what_is_wrong(run_copy):
    copy = run_copy
    found = verify_run(copy)
    assert set(found["artifacts"]) == set(ARTIFACTS) - {"baseline_keras"}
    model = copy / "half_tflite" / "model.tflite"
    good = model.read_bytes()
    model.write_bytes(good[:-4] + b"\0\1\2\3")
    with pytest.raises(DataError, match="half_tflite/model.tflite is damaged"):
        verify_run(copy)
    # A wrong artifact whose manifest was made to match: only its outputs give it away.
    model.write_bytes((copy / "baseline_tflite" / "model.tflite").read_bytes())
    manifest = json.loads((copy / "manifest.json").read_text())
    for entry in manifest["files"]:
        if entry["path"] == "half_tflite/model.tflite":
            entry.update(bytes=model.stat().st_size, sha256=sha256(model))
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(VerificationError, match="'max_abs_error' failed: half_tflite: "):
        verify_run(copy)
    model.unlink()
    with pytest.raises(DataError, match="is missing; the manifest lists it"):
        verify_run(copy)
    (copy / "manifest.json").unlink()
    with pytest.raises(InputError, match="holds no finished run"):
        verify_run(copy)


def test_a_flipped_bit_is_found_when_a_file_of_a_run_is_opened(run_copy):
    for name in ("half/model.keras", "half_tflite/model.tflite", "baseline/saved_model/saved_model.pb"):
        file = run_copy / name
        good = file.read_bytes()
        file.write_bytes(good[:-40] + bytes([good[-40] ^ 1]) + good[-39:])
        opened = file.parent if file.suffix == ".pb" else file
        with pytest.raises(DataError, match=r"its SHA-256 differs from the manifest"):
            tfopt.Predictor.load(opened)
        file.write_bytes(good)
        tfopt.Predictor.load(opened)
    with pytest.raises(DataError, match="is not a manifest"):
        (run_copy / "manifest.json").write_text("{")
        tfopt.models.load(run_copy / "half" / "model.keras")


def outputs(folder, names):
    """What artifacts compute on the same inputs."""
    ids = np.random.default_rng(0).integers(0, 300, (6, 8))
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    report = Report.load(folder / "report.json")
    return {
        name: tfopt.Predictor.load(folder / report.artifact(name).path).predict(inputs)["logits"] for name in names
    }


def run_until(step, recipe, out, resume):
    """To be called in a child, which is killed in the middle of a step; of a training, after a checkpoint."""

    def kill():
        while recipe.train.checkpoint_every and not list(out.glob("checkpoints/*/step-*")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

    def log(line):
        if line == f"[{step}]":
            threading.Timer(0.0 if step == "data" else 0.3, kill).start()

    run(recipe, out, resume=resume, log=log)


def test_a_run_killed_at_any_step_goes_on_and_ends_with_the_same_artifacts(finished_run, tiny_recipe, tmp_path):
    changes = {"exports": [{"format": "tflite", "quantization": "dynamic_int8", "of": ["baseline", "half"]}],
               "measure.memory": False, "train.checkpoint_every": 0}  # fmt: skip
    recipe = tfopt.Recipe.load(tiny_recipe()).with_changes(changes)
    recipe = recipe.model_copy(update={"variants": recipe.variants[:1]})
    out = tmp_path / "killed"
    for step in ("data", "train baseline", "export baseline_tflite_dynamic_int8", "measure"):
        with pytest.raises(ChildFailedError, match=f"signal {signal.SIGKILL}"):
            run_in_child(run_until, step, recipe, out, step != "data", preload=(*WARM, "tfopt.run.pipeline"))
    lines = []
    report = run(recipe, out, resume=True, log=lines.append)
    assert "[train half]" not in lines and "[measure]" in lines
    names = [m.name for m in report.artifacts]
    assert names == ["baseline", "baseline_keras", "baseline_tflite_dynamic_int8", "half_tflite_dynamic_int8"]
    assert tree_digest(out / "data") == tree_digest(finished_run / "data")
    computed = outputs(out, names)
    for name, value in outputs(finished_run, names).items():
        np.testing.assert_array_equal(computed[name], value, err_msg=name)
    verify_run(out)


def test_a_run_killed_while_it_trains_goes_on_from_the_last_checkpoint(tiny_recipe, tmp_path, caplog):
    changes = {"train.checkpoint_every": 3, "exports": [], "measure.memory": False, "model.dropout": 0.0}
    recipe = tfopt.Recipe.load(tiny_recipe()).with_changes(changes).model_copy(update={"variants": []})
    run(recipe, tmp_path / "whole")
    with pytest.raises(ChildFailedError, match=f"signal {signal.SIGKILL}"):
        run_in_child(
            run_until, "train baseline", recipe, tmp_path / "run", False, preload=(*WARM, "tfopt.run.pipeline")
        )
    newest = max(int(p.name[5:]) for p in (tmp_path / "run").glob("checkpoints/baseline/step-*"))
    with caplog.at_level("INFO"):
        run(recipe, tmp_path / "run", resume=True)
    assert (
        f"baseline goes on at step {newest} of" in caplog.text and not (tmp_path / "run" / "checkpoints").exists()
    )
    verify_run(tmp_path / "run")
    # The child that was killed adds numbers in another order than this process, which has two logical devices.
    models = [tfopt.models.load(tmp_path / name / "baseline" / "model.keras") for name in ("run", "whole")]
    for one, other in zip(*map(keras_api.weights, models), strict=True):
        np.testing.assert_allclose(keras_api.to_numpy(one.variable), keras_api.to_numpy(other.variable), atol=1e-4)


def test_a_finished_run_is_not_done_again_and_never_overwritten_by_accident(run_copy, tiny_recipe, tmp_path):
    with pytest.raises(InputError, match="holds a run already"):
        run(tiny_recipe(), run_copy)
    with pytest.raises(InputError, match="another recipe or other data"):
        run(tiny_recipe("replicas = 2"), run_copy, resume=True)
    state = (run_copy / "state.json").read_text()
    (run_copy / "state.json").write_text(state.replace(tfopt.__version__, "0.0.9"))
    with pytest.raises(InputError, match=f"was begun with tfopt 0.0.9, this is {tfopt.__version__}"):
        run(tiny_recipe(), run_copy, resume=True)
    (run_copy / "state.json").write_text(state)
    lines = []
    run(tiny_recipe(), run_copy, resume=True, log=lines.append)
    assert not lines
    # A lost bit in the state costs the step it is in: that one ends as it was, so those after it stand.
    damaged = state.replace('"train half", "seconds"', '"train half", "sEconds"')
    (run_copy / "state.json").write_text(damaged)
    run(tiny_recipe(), run_copy, resume=True, log=lines.append)
    assert [line for line in lines if line.startswith("[")] == ["[train half]"]
    lines.clear()
    (run_copy / "state.json").write_text("\0" + damaged.replace('"four_tflite_trained"', '"four'))
    small = tfopt.Recipe.load(tiny_recipe()).with_changes(
        {"exports": [{"format": "tflite"}], "variants": [], "measure.memory": False}
    )
    run(small, run_copy, overwrite=True)
    assert not (run_copy / "half").exists() and not (run_copy / "baseline_xla").exists()
    made = run_copy / "baseline_tflite" / "model.tflite"
    good = made.read_bytes()
    made.write_bytes(b"damaged")
    run(small, run_copy, resume=True, log=lines.append)
    assert "[export baseline_tflite]" in lines and "[train baseline]" not in lines and made.read_bytes() == good
    verify_run(run_copy)
    inputs = task_of(small, run_copy / "data").check_inputs()
    with contextlib.closing(RunFolder(run_copy, small, inputs, resume=True, overwrite=False)):
        with pytest.raises(InputError, match=f"worked in by another process .process {os.getpid()}"):
            run_in_child(run_until, "no step", small, run_copy, True, preload=(*WARM, "tfopt.run.pipeline"))
        assert (run_copy / "run.owner").exists()
    assert not (run_copy / "run.owner").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious").write_text("x")
    with pytest.raises(InputError, match="holds no run"):
        run(tiny_recipe(), tmp_path / "other", overwrite=True)


def test_a_recipe_of_ones_own_learns_without_a_rate_and_takes_lengths_from_its_texts(labelled_tsv, tmp_path):
    train, validation = map(str, labelled_tsv)
    values = {
        "schema": 1, "name": "own", "data": {"train": train, "validation": validation, "vocab_size": 400},
        "model": {"hidden_size": 48, "intermediate_size": 96},
        "exports": [{"format": "tflite", "quantization": "int8"}],
        "measure": {"rounds": 3, "seconds": 0.05, "memory": False},
    }  # fmt: skip
    report = run(Recipe.model_validate(values), tmp_path / "run")
    assert report.recipe["train"]["learning_rate"] == 1e-3
    assert report.artifact("baseline").quality["accuracy"] > 0.85  # 30 steps; 5e-5 leaves it at chance
    # Texts of 5 to 13 tokens are not computed on 32, and any up to data.max_length are taken.
    assert report.recipe["lengths"] == [16, 128] or report.recipe["lengths"] == [8, 16, 128]
    predictor = tfopt.Predictor.load(tmp_path / "run" / report.artifact("baseline_tflite_int8").path)
    assert list(predictor.lengths) == report.recipe["lengths"]
    pretrained = Recipe.load("minilm-sst2").with_changes({"train.learning_rate": None})
    assert pretrained.rate(pretrained.train) == 5e-5 and pretrained.rate(pretrained.variants[0].train) == 4e-5


def test_a_model_of_somebody_whose_inputs_have_other_names(labelled_tsv, tmp_path, generation):
    """Of one length, without a mask, and with probabilities at its end, as tutorials have them."""
    keras = keras_api.keras_module(generation)
    keras.utils.set_random_seed(0)
    ids = keras.layers.Input((24,), dtype="int32", name="tokens")
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(400, 16)(ids))
    keras_api.save_model(keras.Model(ids, keras.layers.Dense(2, "softmax")(x)), tmp_path / "m.keras")
    train, validation = map(str, labelled_tsv)
    values = {
        "schema": 1, "name": "own", "generation": generation,
        "data": {"train": train, "validation": validation, "vocab_size": 400, "max_length": 24},
        "model": {"kind": "keras", "file": str(tmp_path / "m.keras")},
        "train": {"epochs": 8, "learning_rate": 0.02},
        "variants": [{"name": "sparse", "prune": {"sparsity": 0.5}, "train": {"epochs": 1}}],
        "exports": [{"format": "tflite"}],
        "measure": {"rounds": 3, "seconds": 0.05, "memory": False},
    }  # fmt: skip
    with pytest.raises(
        InputError, match=r"takes tokens, the recipe gives none of them; .*\{input_ids = \"tokens\"\}"
    ):
        run(Recipe.model_validate(values), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    values["model"]["inputs"] = {"input_ids": "tokens"}
    report = run(Recipe.model_validate(values), tmp_path / "run")
    for artifact in report.artifacts:
        assert artifact.quality["accuracy"] > 0.95, artifact.name
    predictor = tfopt.Predictor.load(tmp_path / "run" / report.artifact("sparse_tflite").path)
    assert predictor.predict(["a small plum", "an old zinc place"])["label"].tolist() == ["fruit", "metal"]
    values["model"] = {"inputs": {"input_ids": "tokens"}}
    with pytest.raises(InputError, match="inputs name those of a model of kind 'keras'"):
        Recipe.load("demo").with_changes({"model.inputs": {"input_ids": "tokens"}})
