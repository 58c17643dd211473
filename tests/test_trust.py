"""Looking at a file runs nothing of it."""

import json
import os
import resource
import signal
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
from tfopt._base.limits import MAX_MEMBER_BYTES, MAX_TEXT_BYTES
from tfopt._keras import keras_api
from tfopt._keras.loading import load_model
from tfopt._keras.trust import refuse_code
from tfopt._keras.trusted_names import TRUSTED_CLASSES, TRUSTED_FUNCTIONS
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
    np.testing.assert_array_equal(load_model(path)(x), model(x))


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
        load_model(rewritten(path, attack))
    assert not written.exists()


@pytest.mark.parametrize("function", ["io.gfile.rmtree", "load_op_library", "py_function", "io.read_file", "map_fn",
                                      "compat.v1.io.write_file", "keras.utils.get_file", "saved_model.load", ""])  # fmt: skip
def test_functions_are_decided_by_a_list(tmp_path, function):
    node = {"class_name": "TFOpLambda", "config": {"name": "x", "function": function}}
    with pytest.raises(ModelFileError, match="a layer that calls"):
        refuse_code({"layers": [{"config": {"layers": [node]}}]}, tmp_path, generation="tf_keras")


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
    with pytest.raises(ModelFileError, match="may run code or read files while loading"):
        refuse_code({"config": {"layers": [{"config": {"activation": node}}]}}, tmp_path, generation="tf_keras")


def test_a_module_is_not_imported_for_a_file(keras, tmp_path):
    """tf_keras imports whatever module a file names as that of an activation."""
    path = tmp_path / "m.keras"
    keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(3, activation="relu")]).save(path)

    def attack(config):
        config["config"]["layers"][-1]["config"]["activation"] = {
            "module": "antigravity", "class_name": "function", "config": "geohash", "registered_name": "function",
        }  # fmt: skip
        return config

    with pytest.raises(ModelFileError, match="the function 'geohash' of the module antigravity"):
        load_model(rewritten(path, attack))
    assert "antigravity" not in sys.modules


def test_classes_that_the_program_registered_are_loaded(keras, generation, tmp_path):
    @keras.saving.register_keras_serializable(package=f"test_trust_{generation}")
    class Twice(keras.layers.Layer):
        def call(self, x):
            return x * 2

    path = tmp_path / "m.keras"
    keras.Sequential([keras.layers.Input((4,)), Twice(), keras.layers.Dense(3)]).save(path)
    assert type(load_model(path).layers[-2]) is Twice


def with_layer(generation, config, tmp_path, **more):
    """A file whose last layer is another one."""
    keras, path = keras_api.keras_module(generation), tmp_path / "m.keras"
    keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(3)]).save(path)

    def attack(model):
        layer = model["config"]["layers"][-1]
        layer.update(more)
        layer["config"].update(config)
        return model

    return rewritten(path, attack)


@pytest.mark.parametrize("layer", ["StringLookup", "TextVectorization", "IntegerLookup"])
def test_vocabularies_that_are_paths_are_not_read(generation, layer, tmp_path):
    (tmp_path / "secret.txt").write_text("root\nsecret\n")
    config = {"vocabulary": str(tmp_path / "secret.txt"), "name": "lookup"}
    path = with_layer(generation, config, tmp_path, class_name=layer)
    with pytest.raises(ModelFileError, match="the path of another file, vocabulary="):
        load_model(path)


def test_every_layer_of_keras_is_on_the_list_or_left_out_on_purpose(keras):
    """A new release of Keras brings layers that somebody must look at."""
    left_out = {
        "AbstractRNNCell", "DenseFeatures", "FeatureSpace", "FlaxLayer", "InputSpec", "JaxLayer", "Lambda", "Layer",
        "TFSMLayer", "TorchModuleWrapper", "Wrapper", "SequenceFeatures",
    }  # fmt: skip
    classes = {c.__name__ for c in vars(keras.layers).values() if hasattr(c, "get_config")}
    listed = {name for module, name in TRUSTED_CLASSES if module == "keras.layers"}
    assert classes - listed <= left_out and not (listed & left_out) - {"Wrapper"}


@pytest.mark.parametrize(
    ("module", "name"),
    [("keras.layers", "TFSMLayer"), ("keras.layers", "TorchModuleWrapper"), ("keras.src.ops.core", "Map"),
     ("keras.src.layers.core.lambda_layer", "Lambda2"), ("keras.models", "load_model"), ("keras", "Model.save"),
     ("tf_keras.src.saving.saving_lib", "Anything"), ("keras.layers.other", "Dense"), (None, "TFSMLayer")],
)  # fmt: skip
def test_classes_are_decided_by_pairs_of_module_and_name(module, name, tmp_path):
    node = {"class_name": name, "config": {"filepath_": "x"}, "registered_name": None}
    with pytest.raises(ModelFileError, match=name):
        refuse_code(
            {"layers": [node if module is None else {**node, "module": module}]}, tmp_path, generation="tf_keras"
        )


def test_a_registered_name_does_not_cover_another_function(keras, tmp_path):
    keras.saving.get_custom_objects()["harmless"] = len
    try:
        node = {"module": "os", "class_name": "function", "config": "system", "registered_name": "harmless"}
        with pytest.raises(ModelFileError, match="the function 'system' of the module os"):
            refuse_code({"activation": node}, tmp_path, generation="tf_keras")
    finally:
        del keras.saving.get_custom_objects()["harmless"]


def test_what_one_generation_registered_does_not_cover_a_file_of_the_other(keras, generation, tmp_path):
    """Each looks names up among its own objects, and imports the module that the file gives where there is none."""
    other = keras_api.keras_module(next(g for g in keras_api.GENERATIONS if g != generation))
    other.saving.get_custom_objects()["geohash"] = len
    try:
        node = {
            "module": "antigravity",
            "class_name": "function",
            "config": "geohash",
            "registered_name": "function",
        }
        with pytest.raises(ModelFileError, match="the function 'geohash' of the module antigravity"):
            load_model(with_layer(generation, {"activation": node}, tmp_path))
    finally:
        del other.saving.get_custom_objects()["geohash"]
    assert "antigravity" not in sys.modules


def test_classes_that_the_program_registered_are_loaded_from_the_oldest_format(tmp_path):
    """It gives no modules."""

    @tf_keras.saving.register_keras_serializable(package="test_trust_h5")
    class Thrice(tf_keras.layers.Layer):
        def call(self, x):
            return x * 3

    path = tmp_path / "m.h5"
    tf_keras.Sequential([tf_keras.layers.Input((4,)), Thrice(), tf_keras.layers.Dense(3)]).save(path)
    assert type(load_model(path).layers[-2]) is Thrice


def test_an_application_of_keras_is_loaded(keras, generation, tmp_path):
    """That of tf_keras has initializers of TensorFlow."""
    model = keras.applications.EfficientNetV2B0(weights=None, classes=3, input_shape=(32, 32, 3))
    refuse_code(keras.saving.serialize_keras_object(model), tmp_path, generation=generation)


def test_numbers_that_are_infinite_are_settings_too(keras, tmp_path):
    limit = keras.constraints.MinMaxNorm(0.0, float("inf"))
    path = tmp_path / "m.keras"
    keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(3, kernel_constraint=limit)]).save(path)
    assert load_model(path).layers[-1].kernel_constraint.max_value == np.inf


def test_an_operation_on_constants_alone_would_run_while_it_is_built(tmp_path):
    call = [["_CONSTANT_VALUE", -1, [2**20, 2**20], {"dtype": "float32"}]]
    node = {"class_name": "TFOpLambda", "config": {"name": "z", "function": "zeros"}, "inbound_nodes": call}
    with pytest.raises(ModelFileError, match="calls tf.zeros on constants alone"):
        refuse_code({"layers": [node]}, tmp_path, generation="tf_keras")
    node["inbound_nodes"] = [["_CONSTANT_VALUE", -1, 2, {"y": ["input_1", 0, 0]}]]
    refuse_code({"layers": [node]}, tmp_path, generation="tf_keras")


def test_an_operation_of_keras_on_constants_alone_neither(tmp_path):
    keras = keras_api.keras_module("keras")
    inputs = keras.Input((1,), name="x")
    keras.Model(inputs, keras.ops.broadcast_to(inputs, (4, 8))).save(tmp_path / "m.keras")
    load_model(tmp_path / "m.keras")

    def attack(model):
        (node,) = (layer for layer in model["config"]["layers"] if layer["class_name"] == "BroadcastTo")
        node["config"]["shape"] = [2**20, 2**20]
        node["inbound_nodes"][0]["args"] = [[[1.0]]]
        return model

    before = memory_bytes()
    with pytest.raises(ModelFileError, match="an operation BroadcastTo on constants alone"):
        load_model(rewritten(tmp_path / "m.keras", attack))
    assert memory_bytes() - before < 2**29


def test_a_model_larger_than_its_weights_is_not_built(keras, generation, tmp_path):
    before = memory_bytes()
    with pytest.raises(ModelFileError, match="more weights than it stores"):
        load_model(with_layer(generation, {"units": 2**28}, tmp_path))
    path = tmp_path / "m.h5"
    keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(3)]).save(path)

    def attack(model):
        model["config"]["layers"][-1]["config"]["units"] = 2**28
        return model

    with pytest.raises(ModelFileError, match="more weights than it stores"):
        load_model(rewritten(path, attack))
    assert memory_bytes() - before < 2**29


def memory_bytes():
    """The most memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_configurations_nested_deep_or_huge_are_refused(generation, tmp_path):
    deep = "[" * 100_000 + "]" * 100_000
    for text, says in (
        ('{"class_name": "Sequential", "config": ' + deep + "}", "nested deeper than 200 levels"),
        (
            '{"class_name": "Sequential", "config": ' + deep[:300] + deep[-300:] + "}",
            "nested deeper than 200 levels",
        ),
        ("[1, 2]", "its configuration is a list"),
        (" " * (MAX_TEXT_BYTES + 1), "more than the 67,108,864 that are read"),
    ):
        path = with_layer(generation, {}, tmp_path)
        with zipfile.ZipFile(path) as archive:
            facts = archive.read("metadata.json")
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("config.json", text)
            archive.writestr("metadata.json", facts)
        with pytest.raises(ModelFileError, match=says):
            load_model(path)


def test_archives_that_unpack_to_much_more_are_refused(keras, tmp_path):
    path = tmp_path / "m.keras"
    keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(3)]).save(path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tfopt_tokenizer.bin", bytes(MAX_MEMBER_BYTES + 1))
    with pytest.raises(ModelFileError, match="has tfopt_tokenizer.bin of 268,435,457 bytes"):
        load_model(path)
    content = bytearray(path.read_bytes())
    where = content.rindex(b"PK\x01\x02")  # the last entry of the directory: sizes at 20 and 24
    content[where + 24 : where + 28] = (2**31).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match="would unpack tfopt_tokenizer.bin from"):
        load_model(path)


def weights_file(tmp_path, change):
    """A file of both generations' oldest format, with its first kernel made anew."""
    path = tmp_path / "m.h5"
    tf_keras.Sequential([tf_keras.layers.Input((4,)), tf_keras.layers.Dense(3)]).save(path)
    with h5py.File(path, "a") as file:
        group = file["model_weights"]
        while not isinstance(group, h5py.Dataset):
            parent, name = group, next(n for n in group if n != "top_level_model_weights" and len(group[n]))
            group = parent[name]
        del parent[name]
        change(parent, name)
    return path


def external(group, name):
    group.create_dataset(name, (4, 3), "f4", external=[("/etc/passwd", 0, 48)])


def virtual(group, name):
    layout = h5py.VirtualLayout((4, 3), "f4")
    layout[:] = h5py.VirtualSource("/etc/other.h5", "x", (4, 3))
    group.create_virtual_dataset(name, layout)


def soft(group, name):
    group[name] = h5py.SoftLink("/elsewhere")


def linked(group, name):
    group[name] = h5py.ExternalLink("/etc/other.h5", "/x")


def forged(group, name):
    group.create_dataset(name, (2**40,), "f4", chunks=(2**10,))


def unwritten(group, name):
    space = h5py.h5s.create_simple((2**30,))
    h5py.h5d.create(group.id, name.encode(), h5py.h5t.IEEE_F32LE, space)


@pytest.mark.parametrize(
    ("change", "says"),
    [(external, "keeps its values in other files"), (virtual, "keeps its values in other files"),
     (soft, "points elsewhere"), (linked, "points elsewhere .* to /etc/other.h5"), (forged, "says to have"),
     (unwritten, "says to have 4,294,967,296 bytes and holds 0")],
)  # fmt: skip
def test_weights_that_stand_elsewhere_or_nowhere_are_refused(tmp_path, change, says):
    with pytest.raises(ModelFileError, match=says):
        load_model(weights_file(tmp_path, change))


def test_trust_is_given_by_call_and_says_what_it_opens(keras, tmp_path, caplog):
    path = tmp_path / "m.keras"
    keras.Sequential([keras.layers.Input((4,)), keras.layers.Lambda(lambda x: x + 1, name="one")]).save(path)
    with pytest.raises(ModelFileError, match=r"a Lambda layer \(one\).*trust=True"):
        tfopt.models.load(path)
    model = tfopt.models.load(path, trust=True)
    assert "m.keras is trusted: it holds a Lambda layer (one)" in caplog.text
    np.testing.assert_array_equal(np.asarray(model(np.zeros((1, 4), np.float32))), np.ones((1, 4)))


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


def test_a_trusted_saved_model_does_what_it_wants_and_that_is_said(tmp_path, tfopt_main, caplog):
    written = tmp_path / "stolen"
    module = Written(written, at_load=False)
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=module.serve)
    code, _, _ = tfopt_main("bench", tmp_path / "m", "--trust", "--rounds", 1)
    assert code == 0 and "m is trusted: it holds the operation WriteFile" in caplog.text and written.exists()


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


def test_pictures_are_scaled_by_nearest_pixels(tmp_path):
    """The list once lacked the operation behind `UpSampling2D`, so that our own SavedModel was refused."""
    model = tf_keras.Sequential([tf_keras.layers.Input((4, 4, 1)), tf_keras.layers.UpSampling2D()])
    assert tfopt.export(model, tmp_path / "m").max_abs_error == 0


def test_the_operations_of_the_list_exist_and_none_reads_or_writes_files():
    from tensorflow.python.framework import op_def_registry

    assert all(op_def_registry.get(name) for name in TRUSTED_OPERATIONS)
    harmful = ("WriteFile", "ReadFile", "MatchingFiles", "SaveV2", "RestoreV2", "PyFunc", "PyFuncStateless", "EagerPyFunc",
               "DebugIdentity", "ImmutableConst", "Abort", "PrintV2", "TextLineDataset", "Send", "Recv", "RemoteCall",
               "InitializeTableFromTextFileV2", "LoadAndRemapMatrix")  # fmt: skip
    assert TRUSTED_OPERATIONS.isdisjoint(harmful)


def greedy(path, length, *_):
    """A parser that a file makes take everything."""
    return np.ones(2**36, np.uint8)


def crashing(path, length, *_):
    os.kill(os.getpid(), signal.SIGSEGV)


@pytest.mark.parametrize(("parser", "says"), [(greedy, "MemoryError"), (crashing, "signal 11")])
def test_a_parser_that_a_file_breaks_ends_in_an_error(parser, says, tmp_path, monkeypatch):
    from tfopt.run import inspection

    monkeypatch.setattr(inspection, "_inspect_alone", parser)
    (tmp_path / "m.keras").write_bytes(b"x")
    with pytest.raises(ModelFileError, match=f"cannot be looked into: .*{says}"):
        inspection.inspect_apart(tmp_path / "m.keras")
