"""The store of weights: exact, lazy, damaged, foreign; and conversions that build no model."""

import json
import shutil
from typing import get_args

import h5py
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import tfopt
from tfopt._keras import keras_api
from tfopt._keras.layout import placed
from tfopt.errors import DataError, InputError, MissingFileError, ModelFileError
from tfopt.store import codecs
from tfopt.store.index import INDEX, Encoding, Tensor


def small(keras, seed=0, name=None):
    """Layers whose weights files are hardest: shared, nested, recurrent, with statistics and seeds, equal ones."""
    keras.utils.set_random_seed(seed)
    inner = keras.Sequential(
        [keras.Input((5, 6)), keras.layers.Dense(6, name=name and "d"), keras.layers.Dropout(0.5)], name="inner"
    )
    given_ = keras.Input((5, 6), name="x")
    x = keras.layers.Bidirectional(keras.layers.LSTM(3, return_sequences=True, name=name), name="both")(given_)
    x = keras.layers.MultiHeadAttention(2, 3, name="attention")(x, x)
    x = keras.layers.BatchNormalization(name="norm")(inner(inner(x)))
    model = keras.Model(given_, keras.layers.Dense(3, name="head")(x))
    for number, weight in enumerate(keras_api.weights(model)):
        weight.variable.assign(np.random.default_rng(seed * 100 + number).random(weight.variable.shape))
    return model


def values_of(model):
    """In order: some layers have other names in each model."""
    return {str(number): keras_api.to_numpy(w.variable) for number, w in enumerate(keras_api.weights(model))}


def named_values(model):
    return {w.path: keras_api.to_numpy(w.variable) for w in keras_api.weights(model)}


def same(one, other):
    return set(one) == set(other) and all(np.array_equal(one[name], other[name]) for name in one)


def test_names_are_those_that_keras_writes(keras, tmp_path):
    model = small(keras)
    model.compile("adam", "mse", metrics=["mae"])
    model.save_weights(tmp_path / "m.weights.h5")
    found = {}
    with h5py.File(tmp_path / "m.weights.h5") as file:
        file.visititems(
            lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
        )
    found = {name: value for name, value in found.items() if not name.startswith("optimizer")}
    named = {
        one.name: one.value if one.variable is None else keras_api.to_numpy(one.variable) for one in placed(model)
    }
    assert same(found, named)


@pytest.mark.parametrize("settings_", [
    {}, {"format": "hdf5"}, {"format": "hdf5", "compression": "gzip", "narrow": True}, {"shard_bytes": 300, "narrow": True},
], ids=str)  # fmt: skip
def test_a_model_comes_back_bit_for_bit(keras, tmp_path, settings_):
    model, other = small(keras), small(keras, 1)
    store = tfopt.store.save(model, tmp_path / "s", **settings_)
    assert store.verify() == len(store) >= len(keras_api.weights(model))
    tfopt.store.load(other, tmp_path / "s")
    assert same(values_of(model), values_of(other))
    layers = dict(store.layers())
    assert np.array_equal(layers["head"]["kernel"], named_values(model)["head/kernel"]) and len(layers) > 5
    if "shard_bytes" in settings_:
        assert len(list((tmp_path / "s").glob("*.safetensors"))) > 3
    if not settings_:  # anything that reads safetensors reads a dense store
        found = safetensors.numpy.load_file(tmp_path / "s" / "model-00001.safetensors")
        assert same(found, {name: store[name] for name in store})
        store["head/kernel"][:] = 0  # of the copy in memory alone
        assert np.array_equal(tfopt.store.open(tmp_path / "s")["head/kernel"], named_values(model)["head/kernel"])


def test_mapped_weights_are_trained_without_changing_the_file(keras, tmp_path):
    model, other = small(keras), small(keras)
    for weight in keras_api.weights(other):
        weight.variable.assign(np.zeros(weight.variable.shape))
    tfopt.store.save(model, tmp_path / "s")
    content = {p.name: p.read_bytes() for p in (tmp_path / "s").iterdir()}
    tfopt.store.load(other, tmp_path / "s", mapped=True)
    assert same(values_of(model), values_of(other))
    x = np.random.default_rng(0).random((8, 5, 6)).astype(np.float32)
    for one in (model, other):
        one.compile("sgd", "mse")
        keras.utils.set_random_seed(0)
        one.fit(x, np.ones((8, 5, 3), np.float32), epochs=2, verbose=0)
    for one, two in zip(values_of(model).values(), values_of(other).values(), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)
    assert content == {p.name: p.read_bytes() for p in (tmp_path / "s").iterdir()}
    tfopt.store.save(other, tmp_path / "s")  # over the files that are mapped
    assert np.isfinite(np.asarray(other(x))).all()
    with pytest.raises(InputError, match="only a store is mapped"):
        tfopt.store.load(model, {"a": np.ones(3)}, mapped=True)


def test_every_kind_of_file_becomes_every_other_and_no_model_is_built(keras, tmp_path, monkeypatch):
    model = small(keras, name="lstm")
    x = np.random.default_rng(0).standard_normal((2, 5, 6)).astype(np.float32)
    expected = np.asarray(model(x))
    tfopt.models.save(model, tmp_path / "m.keras")
    model.save_weights(tmp_path / "m.weights.h5")
    tfopt.export(small(keras, 1, name="lstm"), tmp_path / "saved_model")
    tfopt.store.save(model, tmp_path / "store")
    with monkeypatch.context() as patched:
        for place in ("Model", "Sequential", "layers.Layer"):
            owner = keras
            *path, name = place.split(".")
            for part in path:
                owner = getattr(owner, part)
            patched.setattr(getattr(owner, name), "__call__", None)
        for source in ("m.keras", "m.weights.h5", "store"):
            name = source.replace(".", "_")
            tfopt.store.convert(tmp_path / source, tmp_path / f"{name}_store", shard_bytes=500)
            tfopt.store.convert(tmp_path / f"{name}_store", tmp_path / f"{name}.weights.h5")
            if source != "m.weights.h5":
                tfopt.store.convert(tmp_path / f"{name}_store", tmp_path / f"{name}.keras")
        tfopt.store.convert(tmp_path / "store", tmp_path / "saved_model")
        tfopt.store.convert(tmp_path / "saved_model", tmp_path / "from_saved_model")
    for path in (
        sorted(tmp_path.glob("*_store")) + sorted(tmp_path.glob("*.weights.h5")) + [tmp_path / "from_saved_model"]
    ):
        assert same(values_of(tfopt.store.load(small(keras, 2, name="lstm"), path)), values_of(model)), path
    for path in tmp_path.glob("*.keras"):
        assert np.array_equal(np.asarray(tfopt.models.load(path)(x)), expected)
    for path in tmp_path.glob("*.weights.h5"):
        other = small(keras, 2, name="lstm")
        other.load_weights(path)
        assert same(values_of(other), values_of(model))
    found = tfopt.Predictor.load(tmp_path / "saved_model").predict({"x": x})
    assert np.allclose(next(iter(found.values())) if isinstance(found, dict) else found, expected, atol=1e-5)
    with pytest.raises(InputError, match="no configuration of a model"):
        tfopt.store.convert(tmp_path / "m.weights.h5", tmp_path / "x.keras")
    with pytest.raises(InputError, match="where Keras keeps"):
        tfopt.store.convert(tmp_path / "saved_model", tmp_path / "x.weights.h5")
    with pytest.raises(InputError, match="cannot write x.tflite"):
        tfopt.store.convert(tmp_path / "store", tmp_path / "x.tflite")
    assert not list(tmp_path.glob("x.*"))


def test_an_older_file_with_a_whole_model_is_read_by_its_variables_names(tmp_path):
    import tf_keras as keras

    model = small(keras, name="lstm")
    model.save(tmp_path / "m.h5")
    assert same(values_of(tfopt.store.load(small(keras, 1, name="lstm"), tmp_path / "m.h5")), values_of(model))


floats = arrays.arrays(
    st.sampled_from([np.float32, np.float64, np.float16, np.int8, np.int64, bool]),
    arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9),
)


@settings(max_examples=60)
@given(floats, floats)
def test_encodings_give_back_the_same_bits(value, other):
    codecs_least = codecs._LEAST
    codecs._LEAST = 1
    try:
        for base in (None, value, other, value.copy()):
            encoding, parts = codecs.encode(value, sparse=True, narrow=True, int8=False, base=base)
            tensor = Tensor(value.dtype.name, value.shape, encoding, {})
            found = codecs.decode("x", tensor, parts, base=base)
            assert found.dtype == value.dtype and found.tobytes() == value.tobytes() and found.shape == value.shape
            assert base is not value or encoding == "same"
    finally:
        codecs._LEAST = codecs_least


def test_sparse_narrow_and_rounded_tensors_take_less(tmp_path):
    rng = np.random.default_rng(0)
    dense = rng.standard_normal((300, 200)).astype(np.float32)
    tensors = {
        "dense": dense, "sparse": np.where(rng.random(dense.shape) < 0.1, dense, 0),
        "clusters": rng.standard_normal(16).astype(np.float32)[rng.integers(0, 16, dense.shape)],
        "half": dense.astype(tf.bfloat16.as_numpy_dtype), "negative zeros": np.full((100, 100), -0.0, np.float32),
    }  # fmt: skip
    store = tfopt.store.save(tensors, tmp_path / "s", narrow=True)
    assert {name: t.encoding for name, t in store.tensors.items()} == {
        "dense": "dense", "sparse": "sparse", "clusters": "table", "half": "dense", "negative zeros": "table",
    }  # fmt: skip
    assert all(store[name].tobytes() == np.ascontiguousarray(value).tobytes() for name, value in tensors.items())
    sizes = {
        n: sum(store._array(n + s, p.file).nbytes for s, p in t.parts.items()) / t.bytes
        for n, t in store.tensors.items()
    }
    assert sizes["sparse"] < 0.15 and sizes["clusters"] < 0.26 and sizes["dense"] == 1
    rounded = tfopt.store.save(tensors, tmp_path / "r", int8=True)
    step = np.abs(dense).max(0) / 127
    assert (np.abs(rounded["dense"] - dense) <= 0.501 * step).all() and rounded.tensors["dense"].encoding == "int8"
    for name in ("sparse", "dense"):
        copy = tfopt.store.save({name: tensors[name]}, tmp_path / "h", format="hdf5", compression="gzip")
        assert copy[name].tobytes() == tensors[name].tobytes()


def test_every_encoding_is_tried(tmp_path):
    """A row of the table that nothing here is stored as fails."""
    rng = np.random.default_rng(0)
    one = rng.standard_normal((90, 60)).astype(np.float32)
    tensors = {"dense": one, "sparse": one * (one > 1.5), "table": np.sign(one), "delta": one, "same": one}
    tfopt.store.save(tensors, tmp_path / "a")
    changed = {
        **tensors,
        "delta": one * np.float32(1 + 1e-6),
        "new": one,
        "clusters": np.sign(one),
        "zeros": one * (one > 1.5),
    }
    found = {
        t.encoding
        for t in tfopt.store.save(changed, tmp_path / "b", base=tmp_path / "a", narrow=True).tensors.values()
    }
    found |= {t.encoding for t in tfopt.store.save(tensors, tmp_path / "c", int8=True).tensors.values()}
    assert found == set(get_args(Encoding))


@pytest.mark.parametrize("name", ["MobileNetV2", "EfficientNetB0"])
def test_models_that_nobody_here_built_become_stores_and_files(keras, tmp_path, name):
    model = getattr(keras.applications, name)(weights=None, input_shape=(32, 32, 3), classes=5)
    tfopt.models.save(model, tmp_path / "m.keras")
    tfopt.store.convert(tmp_path / "m.keras", tmp_path / "s", shard_bytes=10**6)
    tfopt.store.convert(tmp_path / "s", tmp_path / "n.keras")
    tfopt.store.convert(tmp_path / "s", tmp_path / "n.weights.h5")
    x = np.random.default_rng(0).random((2, 32, 32, 3)).astype(np.float32)
    assert np.array_equal(model(x), tfopt.models.load(tmp_path / "n.keras")(x))
    other = getattr(keras.applications, name)(weights=None, input_shape=(32, 32, 3), classes=5)
    other.load_weights(tmp_path / "n.weights.h5")
    assert same(values_of(other), values_of(model))


def test_a_public_checkpoint_goes_through_a_store(minilm_folder, tmp_path):
    model = tfopt.models.from_pretrained(minilm_folder, "keras")
    before = values_of(model)
    store = tfopt.store.save(model, tmp_path / "s", shard_bytes=20 * 2**20)
    assert len(list(store.folder.glob("*.safetensors"))) > 3
    for weight in keras_api.weights(model):
        weight.variable.assign(np.zeros(weight.variable.shape))
    assert same(values_of(tfopt.store.load(model, store, mapped=True)), before)


def test_a_difference_is_small_and_needs_the_very_store_that_it_is_one_to(tmp_path):
    rng = np.random.default_rng(0)
    before = {name: rng.standard_normal((200, 100)).astype(np.float32) for name in "abc"}
    after = {**before, "a": before["a"] * (1 + 1e-4 * rng.standard_normal((200, 100)).astype(np.float32))}
    later = {**after, "d": before["a"]}
    tfopt.store.save(before, tmp_path / "one")
    tfopt.store.save(after, tmp_path / "two", base=tmp_path / "one")
    third = tfopt.store.save(later, tmp_path / "three", base=tmp_path / "two")
    assert {n: t.encoding for n, t in third.tensors.items()} == {
        "a": "same",
        "b": "same",
        "c": "same",
        "d": "dense",
    }
    size = sum(p.stat().st_size for p in (tmp_path / "two").glob("*.safetensors"))
    assert size < 0.7 * before["a"].nbytes
    shutil.move(tmp_path, tmp_path.with_name("moved"))  # together they can be moved
    tmp_path = tmp_path.with_name("moved")
    assert same({name: tfopt.store.open(tmp_path / "three")[name] for name in later}, later)
    alone = tfopt.store.save(tmp_path / "three", tmp_path / "alone")
    tfopt.store.save(after, tmp_path / "one")
    with pytest.raises(DataError, match="which has changed since"):
        tfopt.store.open(tmp_path / "two")
    shutil.rmtree(tmp_path / "one")
    with pytest.raises(MissingFileError):
        tfopt.store.open(tmp_path / "two")
    assert same({name: alone[name] for name in alone}, later)
    with pytest.raises(InputError, match="cannot be a difference to itself"):
        tfopt.store.save(later, tmp_path / "alone", base=tmp_path / "alone")


@pytest.fixture
def store(tmp_path):
    tfopt.store.save({"a/kernel": np.arange(30_000, dtype=np.float32), "b": np.zeros(9000)}, tmp_path / "s")
    return tmp_path / "s"


def forge(store, change):
    values = json.loads((store / INDEX).read_text())
    change(values["metadata"]["tfopt"])
    (store / INDEX).write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("change", "says"),
    [(lambda m: m["tensors"]["b"].update(shape=[2**40]), "do not make float64|would unpack|parts do not make"),
     (lambda m: m["tensors"]["b"].update(shape=[-1]), "has the shape"), (lambda m: m.pop("files"), "files: Field required"),
     (lambda m: m["tensors"]["b"].update(dtype="object"), "cannot be stored"),
     (lambda m: m["tensors"]["b"].update(dtype="float99"), "unknown dtype"), (lambda m: m.update(more=1), "more: Unexpected"),
     (lambda m: m["tensors"]["b"].update(encoding="delta"), "is a difference to nothing"),
     (lambda m: m["tensors"]["b"].update(encoding="pickle"), "encoding: Input should be"),
     (lambda m: m["files"].update({"../x": 1}), "leads out of its folder"),
     (lambda m: m["files"].update({"gone.safetensors": 1}), "not found"),
     (lambda m: m.update(base="."), "a difference to itself"),
     (lambda m: m["tensors"].update(c=dict(m["tensors"]["a/kernel"])), "lacks 'c'")],
)  # fmt: skip
def test_a_forged_index_is_explained(store, change, says):
    forge(store, change)
    with pytest.raises(DataError, match=says):
        tfopt.store.open(store).verify()


@pytest.mark.parametrize("format_", ["safetensors", "hdf5"])
def test_flipped_bits_and_cut_files_are_found(tmp_path, format_):
    given_ = {"a": np.random.default_rng(0).standard_normal(5000)}
    tfopt.store.save(given_, tmp_path / "s", format=format_)
    (file,) = [p for p in (tmp_path / "s").iterdir() if p.name != INDEX]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match="the checksum of 'a' differs"):
        tfopt.store.open(tmp_path / "s")["a"]
    file.write_bytes(content[:-1])
    with pytest.raises(DataError, match="is cut or changed"):
        tfopt.store.open(tmp_path / "s")


def test_what_holds_no_weights_or_others_is_explained(keras, tmp_path):
    model = small(keras)
    store = tfopt.store.save(
        {name: value for name, value in named_values(model).items() if name != "head/bias"}, tmp_path / "s"
    )
    before = values_of(model)
    with pytest.raises(DataError, match="lacks 1 weights of model .*: head/bias"):
        tfopt.store.load(model, store)
    tfopt.store.save({**named_values(model), "head/bias": np.zeros(4)}, tmp_path / "s")
    with pytest.raises(DataError, match="'head/bias' has the shape .4,., the model's is .3,."):
        tfopt.store.load(model, tmp_path / "s")
    assert same(values_of(model), before)
    (tmp_path / "x.bin").write_bytes(b"x")
    for wrong, error, says in (
        (tmp_path / "x.bin", InputError, "holds no weights"), (tmp_path / "none", MissingFileError, "not found"),
        (3, InputError, "come from a model, a path or arrays"),
    ):  # fmt: skip
        with pytest.raises(error, match=says):
            tfopt.store.save(wrong, tmp_path / "t")
    with pytest.raises(InputError, match="is not empty and holds no store"):
        tfopt.store.save(model, tmp_path)
    (tmp_path / "bad.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(50))
    with pytest.raises(ModelFileError, match="no weights that can be read"):
        tfopt.store.save(tmp_path / "bad.h5", tmp_path / "t")
    for settings_, says in (
        ({"format": "npz"}, "format must be"), ({"compression": "gzip"}, "only format='hdf5'"), ({"shard_bytes": 0}, "1 or more"),
        ({"format": "hdf5", "compression": "zip"}, "compression must be"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=says):
            tfopt.store.save(model, tmp_path / "t", **settings_)
    assert not (tmp_path / "t").exists()


def test_a_folder_of_somebody_else_is_not_replaced(tmp_path):
    """A sharded model of Hugging Face has an index of the same name."""
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / INDEX).write_text(
        '{"metadata": {"total_size": 4}, "weight_map": {"a": "model-1.safetensors"}}'
    )
    with pytest.raises(InputError, match="is not empty and holds no store"):
        tfopt.store.save({"a": np.ones(3)}, tmp_path / "hf")
    assert (tmp_path / "hf" / INDEX).exists()


def test_a_store_is_no_difference_to_what_is_one_to_it(tmp_path):
    for name, base in (("a", None), ("b", "a")):
        tfopt.store.save({"x": np.ones(9)}, tmp_path / name, base=None if base is None else tmp_path / base)
    with pytest.raises(InputError, match="cannot be a difference"):
        tfopt.store.save({"x": np.ones(9)}, tmp_path / "a", base=tmp_path / "b")
    assert tfopt.store.open(tmp_path / "b")["x"].sum() == 9


def test_a_tensor_belongs_to_one_weight(tmp_path):
    import tf_keras as keras

    def towers():
        given_ = keras.Input((2,))
        parts = [
            keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="fc")], name=name)(given_)
            for name in "ab"
        ]
        model = keras.Model(given_, parts)
        for number, weight in enumerate(keras_api.weights(model)):
            weight.variable.assign(np.full(weight.variable.shape, number))
        return model

    model = towers()
    with pytest.raises(DataError, match="lacks 2 weights"):
        tfopt.store.load(model, {"fc/kernel": np.ones((2, 2)), "fc/bias": np.ones(2)})
    model.save(tmp_path / "two.h5")
    other = towers()
    for weight in keras_api.weights(other):
        weight.variable.assign(np.zeros(weight.variable.shape))
    try:
        tfopt.store.load(other, tmp_path / "two.h5")
    except DataError as error:
        assert "lacks" in str(error)  # rather than the wrong ones
    else:
        assert same(values_of(model), values_of(other))


def test_parts_that_would_take_all_memory_or_hide_others_are_refused(tmp_path):
    with pytest.raises(DataError, match="two tensors are called|as a part of another"):
        tfopt.store.save({"a": np.zeros(9000, np.float32), "a.values": np.ones(3)}, tmp_path / "s")
    n = 10**6
    for encoding, parts in (
        ("table", {".table": np.zeros((1, n), np.float32), ".numbers": np.zeros(10 * n, np.uint8)}),
        ("int8", {".int8": np.zeros((n, 1), np.int8), ".scale": np.zeros((1, n), np.float32)}),
        ("delta", {".delta": np.frombuffer(zstandard.compress(bytes(n)), np.uint8)}),
    ):
        with pytest.raises(DataError, match="is damaged: its parts do not make"):
            codecs.decode("x", Tensor("float32", (3, 4), encoding, {}), parts, np.zeros((3, 4), np.float32))
