"""Looking at a file runs nothing of it."""

import json
import sys
import zipfile

import h5py
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tfopt import keras_api
from tfopt._keras.trust import TRUSTED_FUNCTIONS, refuse_code
from tfopt.errors import ModelFileError


def rewritten(path, change):
    """The file with another configuration, as an attacker writes it."""
    if path.suffix == ".h5":
        with h5py.File(path, "a") as file:
            file.attrs["model_config"] = json.dumps(change(json.loads(file.attrs["model_config"])))
        return path
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["config.json"] = json.dumps(change(json.loads(members["config.json"]))).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def model_of_operations():
    inputs = tf_keras.Input((4, 8))
    x = tf.matmul(inputs, tf.transpose(tf.nn.relu(inputs) * 2, [0, 2, 1]))
    x = tf.concat([x, tf.cast(tf.cast(x, tf.int32), tf.float32)], -1)[:, 1:, :3]
    return tf_keras.Model(inputs, tf_keras.layers.Dense(2)(tf.math.reduce_mean(x, axis=1)))


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_operations_that_compute_are_loaded(tmp_path, suffix):
    model, path = model_of_operations(), tmp_path / f"m{suffix}"
    model.save(path)
    x = np.random.default_rng(0).standard_normal((2, 4, 8)).astype(np.float32)
    np.testing.assert_array_equal(keras_api.load_model(path)(x), model(x))


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_function_that_writes_is_refused_and_does_not_run(tmp_path, suffix):
    inputs = tf_keras.Input((), dtype="string")
    model = tf_keras.Model(inputs, tf_keras.layers.Flatten()(tf.strings.upper(inputs)[:, None]))
    path, written = tmp_path / f"m{suffix}", tmp_path / "stolen"
    model.save(path)

    def attack(config):
        layer = next(n for n in config["config"]["layers"] if n["config"].get("function") == "strings.upper")
        layer["config"]["function"] = "io.write_file"
        layer["inbound_nodes"] = [["_CONSTANT_VALUE", -1, str(written), {"contents": "x", "name": None}]]
        return config

    with pytest.raises(ModelFileError, match=r"a layer that calls tf\.io\.write_file"):
        keras_api.load_model(rewritten(path, attack))
    assert not written.exists()


@pytest.mark.parametrize("function", ["io.gfile.rmtree", "load_op_library", "py_function", "io.read_file", "map_fn",
                                      "compat.v1.io.write_file", "keras.utils.get_file", "saved_model.load", ""])  # fmt: skip
def test_functions_are_decided_by_a_list(tmp_path, function):
    node = {"class_name": "TFOpLambda", "config": {"name": "x", "function": function}}
    with pytest.raises(ModelFileError, match="a layer that calls"):
        refuse_code({"layers": [{"config": {"layers": [node]}}]}, tmp_path)


def test_every_trusted_function_exists():
    from tensorflow.python.util.tf_export import get_symbol_from_name

    missing = [name for name in TRUSTED_FUNCTIONS if get_symbol_from_name(name) is None]
    assert not missing
    assert not {n for n in TRUSTED_FUNCTIONS if n.split(".")[0] in ("io", "data", "saved_model", "train", "summary")}


@pytest.mark.parametrize(
    "node",
    [
        {"module": "os", "class_name": "function", "config": "system", "registered_name": "function"},
        {"module": "builtins", "class_name": "function", "config": "exec", "registered_name": "function"},
        {"module": "subprocess", "class_name": "Popen", "config": {"args": "true"}, "registered_name": "Popen"},
        {"module": "keras.utils", "class_name": "function", "config": "get_file", "registered_name": "get_file"},
        {"module": "tf_keras.src.utils.data_utils", "class_name": "function", "config": "get_file"},
        {"class_name": "ClassMethod", "config": {"cls_symbol": "io.gfile.GFile", "method_name": "write"}},
        {"class_name": "InstanceMethod", "config": {"attr_name": "__reduce__"}},
        {"class_name": "TensorFlowOpLayer", "config": {"node_def": {"op": "WriteFile"}, "name": "x"}},
        {"class_name": "Lambda", "config": {"name": "x"}},
    ],
    ids=lambda node: f"{node.get('module')} {node['class_name']}",
)
def test_names_that_lead_out_of_keras_are_refused(tmp_path, node):
    with pytest.raises(ModelFileError, match="code that would run while loading"):
        refuse_code({"config": {"layers": [{"config": {"activation": node}}]}}, tmp_path)


def test_a_module_is_not_imported_for_a_file(keras, tmp_path):
    """tf_keras imports whatever module a file names as that of an activation."""
    path = tmp_path / "m.keras"
    keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(3, activation="relu")]).save(path)

    def attack(config):
        config["config"]["layers"][-1]["config"]["activation"] = {
            "module": "antigravity", "class_name": "function", "config": "geohash", "registered_name": "function",
        }  # fmt: skip
        return config

    with pytest.raises(ModelFileError, match="function of the module antigravity"):
        keras_api.load_model(rewritten(path, attack))
    assert "antigravity" not in sys.modules


def test_classes_that_the_program_registered_are_loaded(keras, generation, tmp_path):
    @keras.saving.register_keras_serializable(package=f"test_trust_{generation}")
    class Twice(keras.layers.Layer):
        def call(self, x):
            return x * 2

    path = tmp_path / "m.keras"
    keras.Sequential([keras.layers.Input((4,)), Twice(), keras.layers.Dense(3)]).save(path)
    assert type(keras_api.load_model(path).layers[-2]) is Twice
