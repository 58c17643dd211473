"""Answers to any number of texts as records: in order, each once, by processes or Ray, also after a kill."""

import functools
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import tensorflow as tf

import tfopt
from tfopt import Workers
from tfopt._base.children import ChildFailedError
from tfopt._base.ray_actors import cluster
from tfopt.data.batches import batches
from tfopt.data.columns import record_batches
from tfopt.data.records.framing import scan_records
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
    beside = os.path.relpath(classifier)
    manifest = tfopt.batch_predict(beside, lines, out=tmp_path / "out", workers=workers, shard_rows=300)
    assert manifest.records == 700 and [shard.records for shard in manifest.shards] == [384, 316]
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

    tfopt.batch_predict(classifier, lines, out=tmp_path / "out", workers=workers, progress=kill_one)
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
    with pytest.raises(ChildFailedError, match="a worker process ended|a call ended 3 processes of Ray"):
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
    asked += ["--shard-rows", "512"]
    first = subprocess.Popen(asked, env=environment, stdout=subprocess.DEVNULL)
    unfinished = tmp_path / "out.unfinished"
    _wait(lambda: len(list(unfinished.glob("0*.shard"))) > 2, first)
    first.terminate()
    assert first.wait(30) == 75
    second = subprocess.Popen(asked, env=environment, stdout=subprocess.DEVNULL)
    had = len(list(unfinished.glob("0*.shard")))
    _wait(lambda: len(list(unfinished.glob("0*.shard"))) > had, second)
    second.kill()
    second.wait()
    finished = [path.stat().st_ino for path in sorted(unfinished.glob("0*.shard"))]
    assert not out.exists() and 2 < len(finished) < 55
    done = subprocess.run(asked, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["records"] == 28_000
    assert records_of(out)["row"] == list(range(28_000)) and not unfinished.exists()
    assert [path.stat().st_ino for path in sorted(out.glob("*.tfrecord"))][: len(finished)] == finished


def _wait(condition, process):
    end = time.monotonic() + 60
    while not condition():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def cut_between_records(path):
    """What is left looks healthy alone."""
    records = list(scan_records(path))
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records[:-3]:
            writer.write(record)


@pytest.mark.parametrize("damage", [cut, cut_between_records, Path.unlink])
def test_finished_shards_are_kept_and_damaged_ones_done_again(classifier, lines, tmp_path, monkeypatch, damage):
    def stop(rows):
        if rows > 600:
            raise KeyboardInterrupt

    asked = functools.partial(tfopt.batch_predict, classifier, lines, out=tmp_path / "out", shard_rows=256)
    with pytest.raises(KeyboardInterrupt):
        asked(progress=stop)
    unfinished = tmp_path / "out.unfinished"
    shards = sorted(unfinished.glob("*.shard"))
    assert len(shards) == 2 and not (tmp_path / "out").exists()
    damage(shards[1])
    (unfinished / ".0a1b.tmp.00002-256.shard").write_bytes(b"what a process left that was killed while it wrote")

    started = []
    original = batch_prediction.answered
    monkeypatch.setattr(
        batch_prediction,
        "answered",
        lambda p, job, start, rows: started.append(start) or original(p, job, start, rows),
    )
    asked()
    assert started == [256, 384, 512, 640] and records_of(tmp_path / "out")["row"] == list(range(700))
    # What is left there by other data is not taken for this.
    with pytest.raises(KeyboardInterrupt):
        asked(progress=stop)
    lines.write_text("apple\n" * 300)
    assert asked().records == 300


def test_one_job_at_a_time_and_nothing_of_others(classifier, lines, tmp_path):
    asked = functools.partial(tfopt.batch_predict, classifier, lines, out=tmp_path / "out")

    def meanwhile(rows):
        with pytest.raises(InputError, match="another process answers into"):
            asked()
        raise KeyboardInterrupt

    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with pytest.raises(KeyboardInterrupt):
        asked(progress=meanwhile, workers=2)
    servers = [p for p in psutil.Process().children() if p.pid not in before]
    assert not [child for server in servers for child in server.children()]  # no worker is left
    assert asked().records == 700
    (tmp_path / "out.unfinished").mkdir()
    (tmp_path / "out.unfinished" / "mine").write_text("kept")
    with pytest.raises(InputError, match="holds something else; move it away"):
        asked()
    assert (tmp_path / "out.unfinished" / "mine").exists()


def test_arrays_and_their_outputs(keras, tmp_path):
    inputs = keras.Input((6,), name="x")
    outputs = {"two": keras.layers.Dense(2)(inputs), "cells": keras.layers.Reshape((3, 2))(inputs)}
    path = tfopt.export(keras.Model(inputs, outputs), tmp_path / "m.tflite").path
    x = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)
    manifest = tfopt.batch_predict(path, {"x": x}, out=tmp_path / "out", compression="GZIP", workers=2)
    found, expected = records_of(tmp_path / "out"), tfopt.Predictor.load(path).predict(x)
    assert manifest.compression == "GZIP" and manifest.fields["cells"].shape == (3, 2)
    for name in ("two", "cells"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-6)
    x[280] = np.inf
    with pytest.raises(DataError, match=r"feature '(two|cells)' holds NaN or infinity"):
        tfopt.batch_predict(path, {"x": x}, out=tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


def test_what_cannot_be_asked(classifier, lines, tmp_path, tfopt_main):
    for given, said in (
        ({"batch_size": 0}, "batch_size must be 1"), ({"shard_rows": 0}, "shard_rows must be"),
        ({"compression": "zip"}, "compression must be"), ({"workers": 0}, "workers must be 1"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            tfopt.batch_predict(classifier, lines, out=tmp_path / "out", **given)
    for data in (np.zeros(3), [1, 2], iter(["a"]), ["a", None]):
        with pytest.raises(InputError, match="data must be a file, a list of texts"):
            tfopt.batch_predict(classifier, data, out=tmp_path / "out")
    with pytest.raises(InputError, match="through 'processes' or 'ray', got 'dask'"):
        Workers(2, "dask")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("kept")
    with pytest.raises(InputError, match="holds no records; choose another"):
        tfopt.batch_predict(classifier, lines, out=tmp_path / "full")
    lines.write_text("\n")
    with pytest.raises(DataError, match="no data to answer"):
        tfopt.batch_predict(classifier, lines, out=tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full", "texts.txt"]
    for option in ("--workers", "--shard-rows"):
        code, _, err = tfopt_main("predict", classifier, "apple", option, "2")
        assert code == 2 and "go with --out" in err
    code, _, err = tfopt_main("predict", classifier, "apple", "--out", tmp_path / "out")
    assert code == 2 and "give --file" in err


@pytest.mark.parametrize("through", THROUGH)
def test_ranges_are_those_that_one_process_observes(make_bert, tokens, workers, tmp_path):
    """Of a static export; some activations are averaged over batches, those of 16 bits are the widest."""
    model = make_bert()
    inputs = {name: np.repeat(value, 2, 0) for name, value in tokens.items()}
    for name in ("int8", "int16"):
        alone = tfopt.export(model, tmp_path / "a.tflite", quantization=name, representative=inputs, lengths=[12])
        shared = tfopt.export(
            model, tmp_path / "b.tflite", quantization=name, representative=inputs, lengths=[12], workers=workers
        )
        assert alone.path.read_bytes() == shared.path.read_bytes()


@pytest.mark.parametrize("through", THROUGH)
def test_a_teacher_answers_as_it_would_here(make_bert, tokens, workers, tmp_path):
    distiller = tfopt.Distiller(make_bert(), make_bert(), hidden=1.0, labels=0.5)
    data = tf.data.Dataset.from_tensor_slices((tokens, np.arange(16) % 3)).batch(4)

    def lessons(folder, **who):
        found = [tf.nest.flatten(batch) for batch in distiller.teach(data, tmp_path / folder, epoch=0, **who)]
        return [[value.numpy() for value in batch] for batch in found]

    for one, other in zip(lessons("alone"), lessons("shared", workers=workers), strict=True):
        for ours, theirs in zip(one, other, strict=True):
            np.testing.assert_allclose(theirs, ours, atol=1e-6)


@pytest.mark.parametrize("through", THROUGH)
def test_quality_is_what_one_process_measures(finished_run, workers):
    target, data = (
        finished_run / "baseline_tflite" / "model.tflite",
        batches(finished_run / "data", 8, split="validation"),
    )
    alone, shared = (tfopt.measure(target, data, workers=who).quality for who in (1, workers))
    assert alone == shared and alone["accuracy"] > 0.5


@pytest.fixture
def foreign():
    """A small encoder as KerasHub builds it."""
    keras_hub = pytest.importorskip("keras_hub")
    return keras_hub.models.BertBackbone(
        vocabulary_size=90, num_layers=2, num_heads=2, hidden_dim=16, intermediate_dim=32, max_sequence_length=24
    )


def test_an_encoder_of_kerashub_with_vectors_for_every_token(foreign, tmp_path):
    """Against the model itself, in Keras; outputs of tokens have the length of the inputs."""
    path = tfopt.export(foreign, tmp_path / "m.tflite", lengths=[12, 24]).path
    ids = np.random.default_rng(0).integers(1, 90, (150, 10)).astype(np.int32)
    inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids), "segment_ids": np.zeros_like(ids)}
    manifest = tfopt.batch_predict(path, inputs, out=tmp_path / "out", workers=2)
    expected = {name: np.asarray(value) for name, value in foreign.predict(inputs, verbose=0).items()}
    assert manifest.fields["sequence_output"].shape == (None, 16) and set(manifest.fields) == {"row", *expected}
    found = records_of(tmp_path / "out")
    for name, value in expected.items():
        np.testing.assert_allclose(np.array(found[name]), value, atol=1e-4)
