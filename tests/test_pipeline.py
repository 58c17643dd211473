import json
import signal
import subprocess
import time

import numpy as np
import pytest

import tfopt
from tfopt._base.files import sha256, tree_digest
from tfopt.errors import DataError, InputError, VerificationError
from tfopt.report import Report
from tfopt.run.pipeline import run
from tfopt.run.verification import verify_run

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
    assert {p.name for p in (finished_run / "plots").iterdir()} == {"size_accuracy.png", "latency_accuracy.png"}


def test_the_manifest_lists_every_file_with_its_hash(finished_run):
    manifest = json.loads((finished_run / "manifest.json").read_text())
    listed = {f["path"]: f["sha256"] for f in manifest["files"]}
    present = {str(p.relative_to(finished_run)) for p in finished_run.rglob("*") if p.is_file()}
    assert present - set(listed) == {"manifest.json", "state.json"}
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


def outputs(folder):
    """What every artifact computes on the same inputs."""
    ids = np.random.default_rng(0).integers(0, 300, (6, 8))
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    report = Report.load(folder / "report.json")
    return {m.name: tfopt.Predictor.load(folder / m.path).predict(inputs)["logits"] for m in report.artifacts}


def test_a_run_killed_at_any_step_goes_on_and_ends_with_the_same_artifacts(tiny_recipe, tmp_path, tfopt_command):
    command, environment = tfopt_command
    changes = {"exports": [{"format": "tflite", "quantization": "dynamic_int8", "of": ["baseline", "half"]}]}
    recipe = tfopt.Recipe.load(tiny_recipe()).with_changes(changes)
    recipe = recipe.model_copy(update={"variants": recipe.variants[:1]})
    out, file = tmp_path / "killed", tmp_path / "small.toml"
    file.write_text(recipe.to_toml(), "utf-8")
    arguments = [*command, "run", str(file), "--out", str(out)]
    kills = []
    for wanted in ("data", "train baseline", "export baseline_tflite_dynamic_int8", "measure"):
        process = subprocess.Popen(
            arguments + (["--resume"] if kills else []), env=environment, stderr=subprocess.PIPE, text=True
        )
        for line in process.stderr:
            if line.strip() == f"[{wanted}]":
                time.sleep(0.0 if wanted == "data" else 0.3)
                process.send_signal(signal.SIGKILL)
        process.wait()
        kills.append(process.returncode)
    assert kills == [-signal.SIGKILL] * 4
    lines = []
    report = run(recipe, out, resume=True, log=lines.append)
    assert "[train half]" not in lines and "[measure]" in lines
    undisturbed = run(recipe, tmp_path / "whole")
    assert [m.name for m in report.artifacts] == [m.name for m in undisturbed.artifacts]
    assert tree_digest(out / "data") == tree_digest(tmp_path / "whole" / "data")
    computed = outputs(out)
    for name, value in outputs(tmp_path / "whole").items():
        np.testing.assert_array_equal(computed[name], value, err_msg=name)
    verify_run(out)


def test_a_finished_run_is_not_done_again_and_never_overwritten_by_accident(
    finished_run, run_copy, tiny_recipe, tmp_path
):
    copy = run_copy
    with pytest.raises(InputError, match="holds a run already"):
        run(tiny_recipe(), copy)
    with pytest.raises(InputError, match="another recipe or other data"):
        run(tiny_recipe("replicas = 2"), copy, resume=True)
    state = (copy / "state.json").read_text()
    (copy / "state.json").write_text(state.replace(tfopt.__version__, "0.0.9"))
    with pytest.raises(InputError, match=f"was begun with tfopt 0.0.9, this is {tfopt.__version__}"):
        run(tiny_recipe(), copy, resume=True)
    (copy / "state.json").write_text(state)
    lines = []
    run(tiny_recipe(), copy, resume=True, log=lines.append)
    assert not lines
    (copy / "half_tflite" / "model.tflite").write_bytes(b"damaged")
    run(tiny_recipe(), copy, resume=True, log=lines.append)
    assert "[export half_tflite]" in lines and "[train half]" not in lines
    made = "half_tflite/model.tflite"
    assert (copy / made).read_bytes() == (finished_run / made).read_bytes()
    verify_run(copy)
    small = tfopt.Recipe.load(tiny_recipe()).with_changes({"exports": [], "variants": []})
    run(small, copy, overwrite=True)
    assert not (copy / "half").exists() and not (copy / "baseline_tflite").exists()
    verify_run(copy)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious").write_text("x")
    with pytest.raises(InputError, match="holds no run"):
        run(tiny_recipe(), tmp_path / "other", overwrite=True)


def test_keras_3_on_two_replicas(tiny_recipe, tmp_path):
    recipe = tfopt.Recipe.load(tiny_recipe('generation = "keras"\nreplicas = 2'))
    changes = {"exports": [{"format": "tflite", "of": ["half"]}], "measure.threads": 1}
    recipe = recipe.with_changes(changes)
    report = run(recipe, tmp_path / "run")
    assert all(m.quality["accuracy"] > 0.9 for m in report.artifacts)
    assert report.artifact("half_tflite").kernel_sparsity == pytest.approx(0.5, abs=0.01)
