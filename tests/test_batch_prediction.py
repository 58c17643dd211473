"""Answers to any number of texts as records: in order, each once, by processes or Ray, also after a kill."""

import functools
import json
import os
import signal
import subprocess
import time

import numpy as np
import psutil
import pytest

import tfopt
from tfopt import Workers
from tfopt._base.children import ChildFailedError
from tfopt._base.ray_actors import cluster
from tfopt.data.columns import record_batches
from tfopt.engine import batch_prediction
from tfopt.errors import DataError, InputError

THROUGH = ["processes", "ray"]


@pytest.fixture(scope="module")
def ray_cluster():
    """One local cluster of two cores for all tests."""
    pytest.importorskip("ray")
    with cluster(2):
        yield


@pytest.fixture
def workers(request, through):
    if through == "ray":
        request.getfixturevalue("ray_cluster")
    return Workers(2, through)


@pytest.fixture(scope="module")
def classifier(finished_run):
    return finished_run / "baseline_tflite" / "model.tflite"


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(2)
    words = ["apple", "pear", "iron", "zinc", "the", "very", "small", "thing"]
    return [" ".join(rng.choice(words, rng.integers(1, 9))) for _ in range(700)]


@pytest.fixture
def lines(texts, tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(texts) + "\n")
    return path


def records_of(folder):
    """Every record in the order of the files."""
    found = {}
    for batch in record_batches(folder, 64):
        for name, value in batch.items():
            found.setdefault(name, []).extend(value.numpy().tolist())
    return found


@pytest.mark.parametrize("through", THROUGH)
def test_answers_are_those_of_the_predictor_in_order(classifier, texts, lines, workers, tmp_path):
    manifest = tfopt.batch_predict(classifier, lines, tmp_path / "out", workers=workers, shard_rows=300)
    assert manifest.records == 700 and [shard.records for shard in manifest.shards] == [512, 188]
    found = records_of(tmp_path / "out")
    assert found["row"] == list(range(700))
    expected = tfopt.Predictor.load(classifier).predict(texts)
    assert [label.decode() for label in found["label"]] == expected["label"].tolist()
    np.testing.assert_allclose(found["probability"], expected["probability"], atol=1e-5)
    assert not (tmp_path / "out.unfinished").exists()


@pytest.mark.parametrize("through", THROUGH)
def test_a_worker_that_is_killed_is_replaced_and_no_row_is_lost_or_twice(classifier, lines, workers, tmp_path):
    killed = []

    def kill_one(rows):
        if not killed:
            mine = psutil.Process().children(recursive=True)
            answering = [p for p in mine if _answers(p, workers)]
            killed.append(answering[0].pid)
            os.kill(answering[0].pid, signal.SIGKILL)

    tfopt.batch_predict(classifier, lines, tmp_path / "out", workers=workers, progress=kill_one)
    assert killed and records_of(tmp_path / "out")["row"] == list(range(700))


def _answers(process, workers):
    """Whether a process of ours answers blocks: an actor of Ray, or a child of a server that forks."""
    words = " ".join(process.cmdline())
    if workers.through == "ray":
        return "ray::" in words and "Map" in words
    return "forkserver" in words and not process.children() and "forkserver" in " ".join(process.parent().cmdline())


@pytest.mark.parametrize("through", THROUGH)
def test_a_call_that_is_killed_at_is_done_again(workers, tmp_path):
    """A process that dies in the middle of a call, and one that dies at every try."""
    calls = [(number, str(tmp_path / f"died-{number}")) for number in range(8)]
    found = list(workers.each(_dies_once, calls, setup=functools.partial(int, "10")))
    assert found == [10 + number for number in range(8)] and (tmp_path / "died-3").exists()
    if workers.through == "processes":
        with pytest.raises(ChildFailedError, match="a worker process ended"):
            list(workers.each(_dies, [(0,)], setup=functools.partial(int, "10")))
    with pytest.raises(ChildFailedError, match="ZeroDivisionError"):
        list(workers.each(divmod, [(5,), (0,)], setup=functools.partial(int, "10")))
    with pytest.raises(InputError, match="workers must be"):
        list(workers.each(_refuses, [(1,)], setup=functools.partial(int, "10")))


def _dies_once(ten, number, path):
    if number == 3 and not os.path.exists(path):  # noqa: PTH110
        open(path, "w").close()  # noqa: PTH123
        os.kill(os.getpid(), signal.SIGKILL)
    return ten + number


def _dies(ten, number):
    os.kill(os.getpid(), signal.SIGKILL)


def _refuses(ten, number):
    Workers(0)


def test_the_command_goes_on_behind_the_last_finished_shard_after_a_kill(
    classifier, texts, lines, tfopt_command, tmp_path
):
    command, environment = tfopt_command
    lines.write_text("\n".join(texts * 40))
    out = tmp_path / "out"
    asked = [*command, "predict", str(classifier), "--file", str(lines), "--out", str(out), "--json"]
    first = subprocess.Popen(asked, env=environment, stdout=subprocess.DEVNULL)
    # The command has no such option: shards of a smaller size need more texts than a test has time for.
    unfinished = tmp_path / "out.unfinished"
    _wait(unfinished.exists, first)
    first.kill()
    first.wait()
    assert not out.exists() and unfinished.exists()
    done = subprocess.run(asked, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["records"] == 28_000
    assert records_of(out)["row"] == list(range(28_000)) and not unfinished.exists()


def _wait(condition, process):
    end = time.monotonic() + 60
    while not condition():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)


def test_finished_shards_are_kept_and_damaged_ones_done_again(classifier, lines, tmp_path, monkeypatch):
    def stop(rows):
        if rows > 600:
            raise KeyboardInterrupt

    asked = functools.partial(tfopt.batch_predict, classifier, lines, tmp_path / "out", shard_rows=256)
    with pytest.raises(KeyboardInterrupt):
        asked(progress=stop)
    unfinished = tmp_path / "out.unfinished"
    shards = sorted(unfinished.glob("*.shard"))
    assert len(shards) == 2 and not (tmp_path / "out").exists()
    whole = shards[1].read_bytes()
    shards[1].write_bytes(whole[:-20])

    started = []
    original = batch_prediction._answered
    monkeypatch.setattr(
        batch_prediction,
        "_answered",
        lambda p, job, start, rows: started.append(start) or original(p, job, start, rows),
    )
    asked()
    assert started == [256, 512] and records_of(tmp_path / "out")["row"] == list(range(700))
    # What is left there by other data is not taken for this.
    with pytest.raises(KeyboardInterrupt):
        asked(progress=stop)
    lines.write_text("apple\n" * 300)
    assert asked().records == 300


def test_arrays_and_their_outputs(keras, tmp_path):
    inputs = keras.Input((6,), name="x")
    outputs = {"two": keras.layers.Dense(2)(inputs), "cells": keras.layers.Reshape((3, 2))(inputs)}
    path = tfopt.export(keras.Model(inputs, outputs), tmp_path / "m.tflite").path
    x = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)
    manifest = tfopt.batch_predict(path, {"x": x}, tmp_path / "out", compression="GZIP", workers=2)
    found, expected = records_of(tmp_path / "out"), tfopt.Predictor.load(path).predict(x)
    assert manifest.compression == "GZIP" and manifest.fields["cells"].shape == (3, 2)
    for name in ("two", "cells"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-6)
    x[280] = np.inf
    with pytest.raises(DataError, match=r"feature '(two|cells)' holds NaN or infinity"):
        tfopt.batch_predict(path, {"x": x}, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


def test_what_cannot_be_asked(classifier, lines, tmp_path, tfopt_main):
    for given, said in (
        ({"batch_size": 0}, "batch_size must be 1"), ({"shard_rows": 0}, "shard_rows must be"),
        ({"compression": "zip"}, "compression must be"), ({"workers": 0}, "workers must be 1"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            tfopt.batch_predict(classifier, lines, tmp_path / "out", **given)
    with pytest.raises(InputError, match="through 'processes' or 'ray', got 'dask'"):
        Workers(2, "dask")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("kept")
    with pytest.raises(InputError, match="holds no records; choose another"):
        tfopt.batch_predict(classifier, lines, tmp_path / "full")
    lines.write_text("\n")
    with pytest.raises(DataError, match="no data to answer"):
        tfopt.batch_predict(classifier, lines, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full", "texts.txt"]
    code, _, err = tfopt_main("predict", classifier, "apple", "--workers", "2")
    assert code == 2 and "go with --out" in err
    code, _, err = tfopt_main("predict", classifier, "apple", "--out", tmp_path / "out")
    assert code == 2 and "give --file" in err
