import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import tfopt
from tfopt._keras import keras_api
from tfopt.errors import InputError, MissingFileError, ModelFileError
from tfopt.run.bench import common_inputs

from .conftest import TINY


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    """One encoder (an output per token) in every kind, and the model."""
    folder = tmp_path_factory.mktemp("artifacts")
    model = tfopt.models.bert(TINY, generation="tf_keras")
    keras_api.save_model(model, folder / "m.keras")
    tfopt.export(model, folder / "saved")
    tfopt.export(model, folder / "xla", jit_compile=True, lengths=[8, 16])
    tfopt.export(model, folder / "m.tflite", format="tflite", lengths=[8, 16])
    tfopt.export(model, folder / "batch4.tflite", format="tflite", lengths=[8, 16], batch_size=4)
    return model, [folder / n for n in ("m.keras", "saved", "xla", "m.tflite", "batch4.tflite")]


@pytest.mark.parametrize("rows", [1, 3, 7])
@pytest.mark.parametrize("length", [5, 8, 11, 16])
def test_any_batch_and_length_on_every_artifact(artifacts, rows, length):
    model, paths = artifacts
    rng = np.random.default_rng(0)
    inputs = {"input_ids": rng.integers(1, 300, (rows, length)), "attention_mask": np.ones((rows, length), int)}
    expected = np.asarray(model({k: v.astype(np.int32) for k, v in inputs.items()})["last_hidden_state"])
    for path in paths:
        found = tfopt.Predictor.load(path).predict(inputs)["last_hidden_state"]
        np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=str(path))
        halves = tfopt.Predictor.load(path).predict(inputs, batch_size=2)["last_hidden_state"]
        np.testing.assert_allclose(halves, expected, atol=1e-5, err_msg=str(path))


def test_threads_that_share_a_predictor_get_their_own_answers(artifacts):
    """LiteRT answers one thread with another's numbers where it is not kept from it."""
    model, paths = artifacts
    rng = np.random.default_rng(0)
    rows = [{"input_ids": rng.integers(1, 300, (1, 16)), "attention_mask": np.ones((1, 16), int)} for _ in range(8)]
    expected = [
        np.asarray(model({k: v.astype(np.int32) for k, v in row.items()})["last_hidden_state"]) for row in rows
    ]
    for path in paths:
        predictor = tfopt.Predictor.load(path)

        def wrong(index, predictor=predictor):
            found = predictor.predict(rows[index % 8])["last_hidden_state"]
            return np.abs(found - expected[index % 8]).max() > 1e-4

        predictor.predict(rows[0])
        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(wrong, range(40 if path.suffix == ".keras" else 400))) == 0, path


def test_one_exported_length_is_used(artifacts, tmp_path):
    """An XLA artifact has a flexible function too, but that one would compile anew for every shape."""
    model, _ = artifacts
    tfopt.export(model, tmp_path / "xla", jit_compile=True, lengths=[8])
    predictor = tfopt.Predictor.load(tmp_path / "xla")
    assert predictor.lengths == (8,) and [s.key for s in predictor.signatures] == ["serving_8"]
    ids = np.ones((2, 5), np.int32)
    expected = np.asarray(model({"input_ids": ids, "attention_mask": ids})["last_hidden_state"])
    found = predictor.predict({"input_ids": ids, "attention_mask": ids})["last_hidden_state"]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_errors_say_what_the_artifact_takes(artifacts):
    _, paths = artifacts
    ids = np.ones((1, 20), int)
    for path in paths[2:]:
        predictor = tfopt.Predictor.load(path)
        with pytest.raises(InputError, match="20 tokens is longer than the longest exported length 16"):
            predictor.predict({"input_ids": ids, "attention_mask": ids})
    predictor = tfopt.Predictor.load(paths[1])
    with pytest.raises(InputError, match="takes 2 inputs by name"):
        predictor.predict(ids)
    with pytest.raises(InputError, match="inputs must be .*, got input_ids"):
        predictor.predict({"input_ids": ids})
    with pytest.raises(InputError, match="same number of rows"):
        predictor.predict({"input_ids": ids, "attention_mask": np.ones((2, 20), int)})
    with pytest.raises(InputError, match="batch_size must be 1 or more, got 0"):
        predictor.predict({"input_ids": ids, "attention_mask": ids}, batch_size=0)


def test_token_ids_and_lengths_beyond_the_tables_are_said(artifacts):
    _, paths = artifacts
    for path in paths:  # what XLA compiles takes the last row of a table for any id beyond it
        predictor = tfopt.Predictor.load(path)
        with pytest.raises(InputError, match=r"from 0 to 299, got 5000|does not take these inputs .*out of bounds"):
            predictor.predict({"input_ids": np.full((1, 8), 5000), "attention_mask": np.ones((1, 8), int)})
    ids = np.ones((1, 49), int)
    for path in paths[:2]:
        with pytest.raises(InputError, match=r"does not take these inputs .*48 is not in \[0, 48\)"):
            tfopt.Predictor.load(path).predict({"input_ids": ids, "attention_mask": ids})


def test_bench_times_what_all_artifacts_take(artifacts):
    _, paths = artifacts
    predictors = [tfopt.Predictor.load(path) for path in paths[:3]]
    assert [common_inputs(p, 128)["input_ids"].shape[1] for p in (predictors[:1], predictors[:2])] == [48, 48]
    assert common_inputs(predictors[:2], 37)["input_ids"].shape[1] == 37
    assert common_inputs(predictors, 128)["input_ids"].shape[1] == 16


def test_files_that_are_no_artifacts(tmp_path, artifacts):
    with pytest.raises(MissingFileError, match="artifact not found"):
        tfopt.Predictor.load(tmp_path / "none.tflite")
    (tmp_path / "x.onnx").write_text("x")
    with pytest.raises(ModelFileError, match="is no artifact"):
        tfopt.Predictor.load(tmp_path / "x.onnx")
    whole = artifacts[1][3].read_bytes()
    for name, content in (("a", b""), ("b", b"garbage" * 99), ("c", whole[: len(whole) // 2])):
        (tmp_path / f"{name}.tflite").write_bytes(content)
        with pytest.raises(ModelFileError):
            tfopt.Predictor.load(tmp_path / f"{name}.tflite")
    (tmp_path / "sm").mkdir()
    (tmp_path / "sm" / "saved_model.pb").write_bytes(b"garbage")
    with pytest.raises(ModelFileError, match="not a SavedModel that loads"):
        tfopt.Predictor.load(tmp_path / "sm")
    with pytest.raises(InputError, match="threads must be 1 or more, got 0"):
        tfopt.Predictor.load(artifacts[1][3], threads=0)


def test_threads_too_late_for_tensorflow_are_said_and_the_artifact_runs_all_the_same(artifacts):
    ids = {"input_ids": np.ones((1, 8), int), "attention_mask": np.ones((1, 8), int)}
    for path in artifacts[1][:2]:
        with pytest.warns(RuntimeWarning, match="threads=1 comes too late: TensorFlow runs with"):
            predictor = tfopt.Predictor.load(path, threads=1)
        assert predictor.predict(ids)["last_hidden_state"].shape == (1, 8, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tfopt.Predictor.load(artifacts[1][3], threads=1)  # LiteRT takes them at any time


def test_tflite_files_run_without_tensorflow(artifacts):
    script = (
        "import sys, numpy as np; from tfopt import Predictor\n"
        f"p = Predictor.load({str(artifacts[1][3])!r}); ids = np.ones((1, 8), int)\n"
        "p.predict({'input_ids': ids, 'attention_mask': ids})\n"
        "sys.exit(any(m in sys.modules for m in ('tensorflow', 'keras', 'tf_keras')))"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == 0
