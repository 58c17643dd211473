"""Several processes that train together: what describes them, a whole run, and workers that die."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from tests.conftest import REPOSITORY, without_exports
from tfopt._base.cluster import Cluster, cluster_of
from tfopt._keras import keras_api
from tfopt._keras.loading import load_model
from tfopt.errors import InputError
from tfopt.run.launch import launch
from tfopt.run.pipeline import run
from tfopt.train import make_strategy


def config(workers=("127.0.0.1:20001", "127.0.0.1:20002"), kind="worker", index=0, **further):
    return json.dumps({"cluster": {"worker": list(workers), **further}, "task": {"type": kind, "index": index}})


def test_a_cluster_is_what_tensorflow_reads():
    assert cluster_of({}) is None and cluster_of({"TF_CONFIG": ""}) is None
    assert cluster_of({"TF_CONFIG": config(workers=["127.0.0.1:20001"])}) is None
    found = cluster_of({"TF_CONFIG": config(index=1)})
    assert found == Cluster(("127.0.0.1:20001", "127.0.0.1:20002"), 1) and not found.is_chief
    found = cluster_of({"TF_CONFIG": config(chief=["127.0.0.1:20003"], kind="chief")})
    assert found.is_chief and len(found.workers) == 3
    assert cluster_of({"TF_CONFIG": found.for_worker(2)}).index == 2


@pytest.mark.parametrize(("text", "says"), [
    ("{", "is no JSON"), ("[]", "has no 'cluster'"), ('{"cluster": {}}', "has no 'task'"),
    (config(index=2), "has the task worker 2, but 2 of that type"), (config(index=-1), "has the task worker -1"),
    (config(index=True), "which is none of its cluster"), (config(kind="ps"), "which is none of its cluster"),
    (config(ps=["a:1"]), "has tasks of type ps"), (config(workers=["a", "b:1"]), "has the address 'a'"),
    (config(workers=["a:0", "b:1"]), "has the address 'a:0'"), (config(workers=[1, 2]), "has the address 1"),
    (config(workers=["a:99999", "b:1"]), "which is no host:port"), (config(workers=["a:1", "a:1"]), "the same address"),
    (config(kind=["worker"]), "which is none of its cluster"), (config(evaluator=5), "has tasks of type evaluator"),
])  # fmt: skip
def test_a_malformed_cluster_is_told_before_anything_starts(text, says, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(InputError, match=re.escape(says) + ".*it is JSON such as"):
        make_strategy()


def test_a_port_that_is_in_use(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv("TF_CONFIG", config(workers=[f"127.0.0.1:{port}", "127.0.0.1:20002"]))
        with pytest.raises(
            InputError, match=f"port {port} of this worker .* cannot be listened on: Address already"
        ):
            make_strategy()


@pytest.mark.parametrize(("arguments", "says"), [
    ((0,), "replicas must be 1 or more, got 0"), ((1, "mirored"), "did you mean 'mirrored'"),
    ((2, "none"), "2 replicas need a strategy"), ((2, "multi_worker"), "each worker takes its GPUs"),
    ((1, "multi_worker"), "needs TF_CONFIG with two workers or more"), ((1, "mirrored"), "needs 2 replicas or more"),
    ((1, "tpu"), "needs a TPU, and none was found"), ((1, "parameter_server"), "weights of different steps"),
])  # fmt: skip
def test_strategies_that_cannot_be_had(arguments, says, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(InputError, match=says):
        make_strategy(arguments[0], kind=arguments[1] if len(arguments) > 1 else "auto")


def test_launching_one_worker_or_another_command(tfopt_main):
    with pytest.raises(InputError, match="workers must be 2 or more, got 1"):
        launch(["run", "x.toml"], 1, show=print)
    with pytest.raises(InputError, match="restarts must be 0 or more, got -1"):
        launch(["run", "x.toml"], 2, restarts=-1, show=print)
    with pytest.raises(InputError, match="remove the earlier run"):
        launch(["run", "x.toml", "--overwrite"], 2, restarts=1, show=print)
    code, _, err = tfopt_main("launch", "--", "search", "x.toml")
    assert code == 2 and "workers run recipes" in err


@pytest.fixture
def recipe(tiny_recipe, tmp_path):
    """The baseline and one pruned variant of the tiny recipe, without dropout and files."""

    def make(generation, epochs):
        text = without_exports(tiny_recipe(f'generation = "{generation}"').read_text())
        begins = text.index('[[variants]]\nname = "four"')
        text = text[:begins] + text[text.index("[measure]") :].replace("[measure]", "[measure]\nmemory = false")
        text = text.replace("epochs = 4\n", f"epochs = {epochs}\ncheckpoint_every = 10\n", 1)
        path = tmp_path / "tiny.toml"
        path.write_text(text.replace("[model]\n", "[model]\ndropout = 0.0\n"))
        return path

    return make


def weights(folder, owner):
    model = load_model(folder / owner / "model.keras")
    return {w.path: keras_api.to_numpy(w.variable) for w in keras_api.weights(model)}


class Launched:
    """A launcher of two workers that run a recipe, and what became of it so far."""

    def __init__(self, recipe, folder, through):
        self._recipe, self._folder, self._through = recipe, folder, through
        self.process = None

    def start(self, *further, restarts=0):
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        command = [sys.executable, "-m", "tfopt", "launch", "--workers", "2", "--restarts", str(restarts)]
        command += ["--ray"] * (self._through == "ray")
        command += ["--", "run", str(self._recipe), "--out", str(self._folder / "run"), *further]
        with (self._folder / "said.txt").open("w") as words:
            self.process = subprocess.Popen(command, stdout=words, stderr=words, env=environment)

    def said(self):
        return (self._folder / "said.txt").read_text()

    def step(self):
        """Of the newest checkpoint of the first training."""
        found = (self._folder / "run/checkpoints/baseline").glob("step-*")
        return max((int(f.name[5:]) for f in found), default=0)

    def wait_for(self, condition):
        end = time.monotonic() + 180
        while not condition():
            assert self.process.poll() is None and time.monotonic() < end, self.said()[-3000:]
            time.sleep(0.05)

    def goes_on(self):
        reached = self.step()
        self.wait_for(lambda: self.step() > reached)

    def kill_one(self):
        """One of the processes that train."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        workers = [
            p for p in below if {"tfopt", "run"} <= set(p.cmdline()) or "attended()" in " ".join(p.cmdline())
        ]
        max(workers, key=lambda p: p.pid).kill()

    def ends_with(self, code, within):
        assert self.process.wait(within) == code, self.said()[-3000:]


@pytest.mark.parametrize("through", ["processes", "ray"])
def test_a_run_by_two_workers_that_are_killed_and_stopped_ends_as_one_by_one(recipe, tmp_path, through):
    """One worker killed, then all stopped by SIGTERM, both in the middle of a training; then to the end."""
    path = recipe("keras", 12)
    run(path, tmp_path / "alone", log=lambda line: None)
    launched = Launched(path, tmp_path, through)

    launched.start(restarts=1)
    launched.goes_on()
    launched.kill_one()
    launched.wait_for(lambda: "begin anew" in launched.said())
    launched.goes_on()
    launched.process.send_signal(signal.SIGTERM)
    launched.ends_with(75, within=60)
    assert "interrupted; the same command with --resume goes on" in launched.said()

    if through == "processes":
        launched.start("--resume")
        launched.goes_on()
        launched.kill_one()
        launched.ends_with(1, within=30)
        assert re.search(r"error: worker 1 was ended by SIGKILL", launched.said())
        assert "another worker is gone" in launched.said()

    launched.start("--resume")
    launched.ends_with(0, within=300)
    assert "[0] [train half]" in launched.said() and "[1] [train half]" in launched.said()
    for owner in ("baseline", "half"):
        expected, found = weights(tmp_path / "alone", owner), weights(tmp_path / "run", owner)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, atol=2e-5, err_msg=name)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_worker_that_cannot_start(tmp_path):
    """The reason of the worker is what is told."""
    lines = []
    assert launch(["run", str(tmp_path / "none.toml")], 2, show=lines.append) == 2
    assert any(re.match(r"\[[01]\] .*none.toml", line) for line in lines)
