"""Looking at a file runs nothing of it."""

import json
import sys
import zipfile

import h5py
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tensorflow.python.trackable.resource import TrackableResource

import tfopt
from tfopt import cli
from tfopt._keras import keras_api
from tfopt._keras.trust import TRUSTED_FUNCTIONS, refuse_code
from tfopt.errors import ModelFileError
from tfopt.runtime.trusted_operations import TRUSTED_OPERATIONS


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
    assert not {
        n for n in TRUSTED_FUNCTIONS if n.split(".")[0] in ("io", "data", "saved_model", "train", "summary")
    }


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


class Written(tf.Module):
    """Writes a file when it is called, and when it is loaded."""

    def __init__(self, target, at_load):
        super().__init__()
        self.kernel = tf.Variable(tf.ones((3, 2)))
        self._target = str(target)
        if at_load:
            self.table = Initialized(self._target)

    @tf.function(input_signature=[tf.TensorSpec((None, 3), name="x")])
    def serve(self, x):
        if not hasattr(self, "table"):
            tf.cond(tf.reduce_sum(x) > 0, lambda: tf.io.write_file(self._target, "x"), lambda: tf.no_op())
        return {"y": x @ self.kernel}


class Initialized(TrackableResource):
    def __init__(self, target):
        super().__init__()
        self._target = target
        self._resource_handle = self._create_resource()

    def _create_resource(self):
        return tf.raw_ops.HashTableV2(key_dtype=tf.string, value_dtype=tf.int64, shared_name="attack")

    def _initialize(self):
        tf.io.write_file(self._target, "x")


@pytest.mark.parametrize("at_load", [False, True], ids=["in a signature", "in an initializer"])
@pytest.mark.parametrize("command", ["inspect", "bench"])
def test_a_saved_model_that_writes_is_refused_and_does_not_run(tmp_path, monkeypatch, capfd, at_load, command):
    written = tmp_path / "stolen"
    module = Written(written, at_load)
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=module.serve)
    written.unlink(missing_ok=True)
    monkeypatch.setattr(sys, "argv", ["tfopt", command, str(tmp_path / "m")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2 and "holds the operation WriteFile" in capfd.readouterr().err
    assert not written.exists()


def test_saved_models_of_others_are_loaded(tmp_path):
    """One of TensorFlow itself with loops, tables in memory and randomness, and one of the time of sessions."""
    keys, values = tf.constant(["a", "b"]), tf.constant([1, 2], tf.int64)
    module = tf.Module()
    module.table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, values), -1)

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, name="x")])
    def serve(x):
        total = tf.while_loop(lambda i: i < 3, lambda i: (i + 1,), [tf.constant(0)])[0]
        noise = tf.cast(tf.random.uniform([], 0, 1), tf.int64)
        return {"y": module.table.lookup(x) + tf.cast(total, tf.int64) + noise}

    module.serve = serve
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=serve)
    found = tfopt.Predictor.load(tmp_path / "m").predict(np.array(["b", "c"]))
    np.testing.assert_array_equal(found["y"], [5, 2])
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        x = tf.compat.v1.placeholder(tf.float32, (None, 2), name="x")
        kernel = tf.compat.v1.get_variable("kernel", initializer=tf.constant([[1.0], [2.0]]), use_resource=True)
        y = x @ kernel
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.saved_model.simple_save(session, str(tmp_path / "old"), {"x": x}, {"y": y})
    found = tfopt.Predictor.load(tmp_path / "old").predict(np.array([[1.0, 1.0]], np.float32))
    np.testing.assert_array_equal(found["y"], [[3.0]])


def test_the_operations_of_the_list_exist_and_none_reads_or_writes_files():
    from tensorflow.python.framework import op_def_registry

    assert all(op_def_registry.get(name) for name in TRUSTED_OPERATIONS)
    harmful = ("WriteFile", "ReadFile", "MatchingFiles", "SaveV2", "RestoreV2", "PyFunc", "PyFuncStateless", "EagerPyFunc",
               "DebugIdentity", "ImmutableConst", "Abort", "PrintV2", "TextLineDataset", "Send", "Recv", "RemoteCall",
               "InitializeTableFromTextFileV2", "LoadAndRemapMatrix")  # fmt: skip
    assert TRUSTED_OPERATIONS.isdisjoint(harmful)
