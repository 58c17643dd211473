"""Every technique gives the same weights on one replica, on two, and on two workers, for the same batches."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import REPOSITORY, TINY
from tests.test_contract import EACH, OTHER_WAYS
from tfopt._base.cluster import Cluster
from tfopt._keras import keras_api
from tfopt._keras.copying import copy_of
from tfopt.compress.finish import finish_all
from tfopt.compress.techniques import TECHNIQUES
from tfopt.models import bert
from tfopt.run.launch import free_addresses
from tfopt.train import TrainConfig, fit, make_strategy
from tfopt.train.checkpoints import Checkpoints
from tfopt.train.strategy import is_chief, scope

BATCH, STEPS = 8, 20
CASES = {"none": None, **EACH, **OTHER_WAYS}


def records():
    rng = np.random.default_rng(0)
    ids = rng.integers(3, 300, (BATCH * STEPS - 3, 12)).astype(np.int32)
    mask = np.ones_like(ids)
    mask[::2, 7:] = 0
    return tf.data.Dataset.from_tensor_slices(
        ({"input_ids": ids * mask, "attention_mask": mask}, (ids[:, 0] % 3).astype(np.int64))
    ).batch(BATCH)


def trained(case, generation, strategy):
    """Weights by path, and what is observed while they learn, after the steps of one case."""
    keras = keras_api.keras_module(generation)
    keras.utils.set_random_seed(1)
    with scope(strategy):
        model = bert(TINY, 3, generation=generation)
        teacher = bert(TINY, 3, generation=generation)
        prepared = None
        if CASES[case] is not None:
            name, config, _ = CASES[case]
            if name == "distill":
                config = type(config)(**{**vars(config), "teacher": teacher})
            prepared = next(t for t in TECHNIQUES if t.name == name).load().prepare(model, config)
    trains = prepared.model if prepared else model
    lessons = prepared.lessons if prepared else None
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def compile_with(optimizer, jit_compile):
        lessons.compile(optimizer) if lessons else trains.compile(optimizer, loss)

    data = records() if lessons is None else lessons.teach(records())
    fit(
        trains, lambda number, skip: data.skip(skip), steps=STEPS, strategy=strategy,
        config=TrainConfig(epochs=1, batch_size=BATCH, learning_rate=1e-3, clip_norm=0.5),
        callbacks=prepared.callbacks if prepared else None, compile_with=compile_with,
    )  # fmt: skip
    state = {f"state/{i}": keras_api.to_numpy(v) for i, v in enumerate(prepared.state if prepared else ())}
    finished = finish_all(trains) if prepared else trains
    return state | {w.path: keras_api.to_numpy(w.variable) for w in keras_api.weights(finished)}


def check_same(found, expected):
    assert found.keys() == expected.keys() and len(found) > 5
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, atol=1e-5, rtol=1e-5, err_msg=path)
        np.testing.assert_array_equal(found[path] == 0, value == 0, err_msg=path)


@pytest.fixture(scope="module")
def alone():
    found = {}

    def of(case, generation):
        if (case, generation) not in found:
            found[case, generation] = trained(case, generation, None)
        return found[case, generation]

    return of


@pytest.fixture(scope="module")
def by_workers(tmp_path_factory):
    """Case -> what each of two workers has after it; all cases are trained one after the other."""
    found = {}

    def of(generation):
        if generation not in found:
            folder = tmp_path_factory.mktemp("workers")
            processes = workers_of(["tests.test_replicas", generation, str(folder)], folder)
            for number, process in enumerate(processes):
                assert process.wait(600) == 0, (folder / f"{number}.txt").read_text()[-3000:]
            found[generation] = {
                case: [dict(np.load(folder / f"{number}-{index}.npz")) for number in (0, 1)]
                for index, case in enumerate(CASES)
            }  # fmt: skip
            statistics = [dict(np.load(folder / f"{number}-statistics.npz")) for number in (0, 1)]
            found[generation]["statistics"] = statistics
            assert sorted((folder / "checkpoints").glob("step-*/position.json"))
        return found[generation]

    return of


def workers_of(module, folder):
    """Two processes that train together; what they say goes to files."""
    cluster = Cluster(free_addresses(2), 0)
    started = []
    for number in (0, 1):
        with (folder / f"{number}.txt").open("w") as words:
            environment = {**os.environ, "TF_CONFIG": cluster.for_worker(number), "PYTHONPATH": str(REPOSITORY)}
            environment.pop("PYTEST_XDIST_WORKER", None)
            started.append(
                subprocess.Popen(
                    [sys.executable, "-m", *module], cwd=REPOSITORY, env=environment, stdout=words, stderr=words
                )
            )
    return started


def train_all(generation, folder):
    """What a worker does."""
    strategy = make_strategy()
    assert strategy.num_replicas_in_sync == 2
    number = strategy.cluster_resolver.task_id
    for index, case in enumerate(CASES):
        np.savez(f"{folder}/{number}-{index}.npz", **trained(case, generation, strategy))
    np.savez(f"{folder}/{number}-statistics.npz", **with_statistics(generation, strategy, Path(folder)))


def with_statistics(generation, strategy, folder):
    """A model with a batch norm, of which each worker has its own, and to read it asks all; with checkpoints."""
    keras = keras_api.keras_module(generation)
    keras.utils.set_random_seed(1)
    with scope(strategy):
        layers = [
            keras.layers.Input((6,)),
            keras.layers.Dense(8, name="first"),
            keras.layers.BatchNormalization(name="norm"),
        ]
        model = keras.Sequential([*layers, keras.layers.Dense(2, name="last")])
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 6)).astype(np.float32), rng.normal(size=(64, 2)).astype(np.float32)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
    fit(
        model, lambda number, skip: data.skip(skip), steps=16, strategy=strategy,
        config=TrainConfig(epochs=2, batch_size=BATCH), compile_with=lambda o, **_: model.compile(o, "mse"),
        checkpoints=Checkpoints(folder / "checkpoints", every=2, writes=is_chief(strategy)),
    )  # fmt: skip
    return {w.path: keras_api.to_numpy(w.variable) for w in keras_api.weights(copy_of(model))}


@pytest.mark.parametrize("case", CASES)
def test_two_workers(case, generation, alone, by_workers):
    one, other = by_workers(generation)[case]
    for path, value in one.items():
        np.testing.assert_array_equal(other[path], value, err_msg=path)
    check_same(one, alone(case, generation))


def test_what_each_worker_has_of_its_own_is_read_by_all(generation, by_workers, tmp_path):
    one, other = by_workers(generation)["statistics"]
    replicas = with_statistics(generation, make_strategy(2), tmp_path)
    assert any(path.endswith("moving_mean") and np.abs(value).max() > 0 for path, value in one.items())
    for path, value in one.items():
        np.testing.assert_array_equal(other[path], value, err_msg=path)
        np.testing.assert_allclose(replicas[path], value, atol=1e-5, rtol=1e-5, err_msg=path)


@pytest.mark.parametrize("case", CASES)
def test_two_replicas(case, generation, alone):
    check_same(trained(case, generation, make_strategy(2)), alone(case, generation))


if __name__ == "__main__":
    train_all(*sys.argv[1:])
