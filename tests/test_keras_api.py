import zipfile

import h5py
import numpy as np
import pytest

from tfopt._keras import keras_api
from tfopt._keras.loading import load_model
from tfopt.errors import InputError, MissingFileError, ModelFileError


def small(keras, middle=None):
    layers = [keras.layers.Input((4,)), keras.layers.Dense(8, activation="relu", name="a")]
    return keras.Sequential([*layers, *([middle] if middle else []), keras.layers.Dense(2, name="b")])


def test_generations_are_told_from_objects(keras, generation):
    model = small(keras)
    for thing in (model, model.layers[0], keras.optimizers.Adam()):
        assert keras_api.generation_of(thing) == generation
    with pytest.raises(InputError, match=r"expected a tf_keras or Keras 3 object, got builtins.list"):
        keras_api.generation_of([])


def test_both_generations_save_and_load_in_one_process(tmp_path):
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    for generation in keras_api.GENERATIONS:
        model = small(keras_api.keras_module(generation))
        path = keras_api.save_model(model, tmp_path / f"{generation}.keras")
        loaded = load_model(path)
        assert keras_api.generation_of(loaded) == generation
        np.testing.assert_array_equal(np.asarray(model(x)), np.asarray(loaded(x)))
        model.save(tmp_path / f"{generation}.h5")
        old = load_model(tmp_path / f"{generation}.h5")
        np.testing.assert_array_equal(np.asarray(model(x)), np.asarray(old(x)))


def test_saving_leaves_the_optimizer_out_and_in_place(keras, tmp_path):
    model = small(keras)
    model.compile("adam", "mse")
    model.fit(np.ones((4, 4)), np.ones((4, 2)), verbose=0)
    keras_api.save_model(model, tmp_path / "m.keras")
    assert keras_api.learning_step(model) == 1
    with zipfile.ZipFile(tmp_path / "m.keras") as archive:
        archive.extract("model.weights.h5", tmp_path)
    with h5py.File(tmp_path / "model.weights.h5") as weights:
        assert "optimizer" not in weights


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_lambda_layer_is_refused_before_it_runs(keras, tmp_path, suffix):
    path = tmp_path / f"m{suffix}"
    inner = keras.Sequential([keras.layers.Input((8,)), keras.layers.Lambda(lambda x: x * 2, name="trick")])
    small(keras, inner).save(path)
    with pytest.raises(ModelFileError, match="holds a Lambda layer .*trick"):
        load_model(path)


def test_files_that_are_no_models_are_refused(tmp_path, keras):
    with pytest.raises(MissingFileError, match="model file not found"):
        load_model(tmp_path / "none.keras")
    for name, content in (("a.keras", b"hello"), ("b.h5", b"hello"), ("c.keras", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelFileError, match="not a Keras model file"):
            load_model(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "d.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(ModelFileError, match="not a Keras model file"):
        load_model(tmp_path / "d.keras")
    with h5py.File(tmp_path / "e.h5", "w") as handle:
        handle["x"] = 1
    with pytest.raises(ModelFileError, match="no model configuration"):
        load_model(tmp_path / "e.h5")
    with zipfile.ZipFile(tmp_path / "f.keras", "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("metadata.json", '{"keras_version": "2.21.0"}')
    with pytest.raises(ModelFileError, match="not a Keras model file"):
        load_model(tmp_path / "f.keras")
    small(keras).save(tmp_path / "whole.h5")
    content = (tmp_path / "whole.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelFileError, match="damaged one"):
        load_model(tmp_path / "cut.h5")
    whole = keras_api.save_model(small(keras), tmp_path / "whole.keras").read_bytes()
    (tmp_path / "cut.keras").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelFileError):
        load_model(tmp_path / "cut.keras")


def test_a_file_with_links_into_other_files_is_refused(keras, tmp_path):
    small(keras).save(tmp_path / "m.h5")
    with h5py.File(tmp_path / "m.h5", "a") as handle:
        handle["stolen"] = h5py.ExternalLink("/etc/passwd", "/")
    with pytest.raises(ModelFileError, match=r"points elsewhere \(stolen"):
        load_model(tmp_path / "m.h5")


def test_weights_have_paths_through_nested_layers(keras):
    inputs = keras.layers.Input((4, 8))
    x = keras.layers.MultiHeadAttention(2, 4, name="mha")(inputs, inputs)
    x = keras.Sequential([keras.layers.Bidirectional(keras.layers.LSTM(3, name="lstm"), name="bi")], name="inner")(
        x
    )
    paths = {w.path for w in keras_api.weights(keras.Model(inputs, x))}
    assert {"mha/query/kernel", "mha/attention_output/bias"} <= paths
    assert "inner/bi/forward_lstm/lstm_cell/recurrent_kernel" in paths
    assert len(paths) == 14


def test_saving_over_a_good_file_that_fails_keeps_it(keras, tmp_path, monkeypatch):
    path = keras_api.save_model(small(keras), tmp_path / "m.keras")
    before = path.read_bytes()
    model = small(keras)
    monkeypatch.setattr(type(model), "save", lambda self, target: target.write_bytes(b"half") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        keras_api.save_model(model, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.keras"]
