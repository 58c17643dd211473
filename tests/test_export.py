import contextlib
import dataclasses
import logging
import sys
import threading

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfopt
from tfopt._keras import keras_api
from tfopt._keras.keras_io import call
from tfopt.errors import InputError, VerificationError
from tfopt.export import convert as converting
from tfopt.export import verify as export_verify
from tfopt.tflite.file import read_tflite

KINDS = [
    ("saved_model", None, False),
    ("saved_model", None, True),
    ("tflite", None, False),
    ("tflite", "float16", False),
    ("tflite", "dynamic_int8", False),
]
WIDE = tfopt.models.BertConfig(
    vocab_size=400, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=128,
    max_position_embeddings=48, hidden_dropout_prob=0.0,
)  # fmt: skip


def wide_bert(generation):
    keras_api.keras_module(generation).utils.set_random_seed(1)
    model = tfopt.models.bert(WIDE, 3, generation=generation)
    # An untrained head leaves every class open, and rounding would choose among them.
    next(w for w in keras_api.weights(model) if w.path == "logits/bias").variable.assign([0.0, 0.5, 0.0])
    return model


@pytest.mark.parametrize(("format", "quantization", "jit"), KINDS, ids=str)
def test_every_kind_computes_what_the_model_computes(generation, tokens, tmp_path, format, quantization, jit):
    model = wide_bert(generation)
    path = tmp_path / ("m.tflite" if format == "tflite" else "m")
    artifact = tfopt.export(
        model,
        path,
        format=format,
        quantization=quantization,
        jit_compile=jit,
        representative=tokens,
        lengths=[16, 32],
    )
    predictor = tfopt.Predictor.load(path)
    expected = np.asarray(model(tokens))
    found = predictor.predict(tokens)["logits"]
    tolerance = {None: 1e-5, "float16": 1e-2, "dynamic_int8": 0.1}[quantization] * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=tolerance)
    assert artifact.max_abs_error == pytest.approx(np.abs(found - expected).max(), abs=1e-5)
    assert artifact.lengths == predictor.lengths == (() if format == "saved_model" and not jit else (16, 32))
    bits = {w.bits for w in predictor.weights() if w.is_kernel and w.array.size >= 1024}
    assert bits == {{None: 32, "float16": 16, "dynamic_int8": 8}[quantization]}


def test_quantized_tables_are_looked_up_row_by_row(generation, tmp_path):
    model, sizes = wide_bert(generation), {}
    for quantization in (None, "float16", "dynamic_int8"):
        path = tmp_path / f"{quantization}.tflite"
        tfopt.export(model, path, format="tflite", quantization=quantization, lengths=[16, 32])
        file = read_tflite(path)
        table = next(c for c in file.constants if c.is_lookup and c.shape == (400, 64))
        assert table.dtype == {None: "float32", "float16": "float16", "dynamic_int8": "int8"}[quantization]
        assert file.dequantized_tables == ()
        weights = [c for c in file.constants if (c.is_kernel or c.is_lookup) and c.data.size >= 1024]
        sizes[quantization] = sum(c.data.nbytes for c in weights if c.is_matrix)
    assert sizes["float16"] * 2 == sizes[None] == sizes["dynamic_int8"] * 4


def test_a_table_that_is_widened_as_a_whole_is_an_error(tmp_path, monkeypatch):
    """Without the rewriting, the converter's own float16 file must not pass."""
    monkeypatch.setattr(converting, "widen_after_lookup", lambda content: content)
    with pytest.raises(VerificationError, match="'table_lookup' failed") as caught:
        tfopt.export(
            wide_bert("tf_keras"), tmp_path / "m.tflite", format="tflite", quantization="float16", lengths=[16]
        )
    assert caught.value.check == "table_lookup" and not list(tmp_path.iterdir())


def test_a_converter_that_writes_nan_is_caught(tmp_path, monkeypatch):
    """The trap of Keras 3: variables that nobody tracks are not frozen, and the file computes NaN."""

    def naive(model, path, inputs, lengths, batch):
        module = tf.Module()
        module.model = model
        module.serve = tf.function(lambda named: call(model, inputs, named), [inputs.with_sizes(batch, lengths[0])])
        tf.saved_model.save(module, str(path), signatures={f"serving_{lengths[0]}": module.serve})

    monkeypatch.setattr(converting, "write_saved_model", naive)
    model = wide_bert("keras")
    with pytest.raises(VerificationError) as caught:
        tfopt.export(model, tmp_path / "m.tflite", format="tflite", lengths=[16])
    assert caught.value.check in ("state", "finite", "max_abs_error") and not list(tmp_path.iterdir())


def test_a_quantization_that_does_nothing_is_caught(tmp_path, monkeypatch):
    real = tf.lite.TFLiteConverter.from_saved_model

    def plain(*args, **kwargs):
        converter = real(*args, **kwargs)
        convert = converter.convert
        converter.convert = lambda: (setattr(converter, "optimizations", []), convert())[1]
        return converter

    monkeypatch.setattr(tf.lite.TFLiteConverter, "from_saved_model", plain)
    monkeypatch.setattr(converting, "run_in_child", lambda function, *arguments: function(*arguments))
    with pytest.raises(VerificationError, match="'dtypes' failed: weight .* is float32, not float16"):
        tfopt.export(
            wide_bert("tf_keras"), tmp_path / "m.tflite", format="tflite", quantization="float16", lengths=[16]
        )


RECURRENT = {
    "LSTM": lambda layers: layers.LSTM(16),
    "Bidirectional": lambda layers: layers.Bidirectional(layers.LSTM(12, return_sequences=True)),
    "stacked": lambda layers: layers.RNN([layers.LSTMCell(8), layers.GRUCell(8)]),
    "GRU": lambda layers: layers.GRU(16),
}


@pytest.mark.parametrize("kind", RECURRENT)
@pytest.mark.parametrize("quantization", [None, "dynamic_int8"])
def test_recurrent_layers_start_anew_at_every_call(keras, tmp_path, kind, quantization):
    """tf_keras' LSTM becomes an operator whose state is a variable of the file, unless it is kept from it."""
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Input((6, 8)), RECURRENT[kind](keras.layers), keras.layers.Flatten()]
    model = keras.Sequential([*layers, keras.layers.Dense(3)])
    x = np.random.default_rng(0).standard_normal((4, 6, 8)).astype(np.float32)
    expected = np.asarray(model(x))
    tfopt.export(model, tmp_path / "m.tflite", format="tflite", quantization=quantization)
    tfopt.export(model, tmp_path / "m")
    for path, tolerance in (
        (tmp_path / "m", 1e-5),
        (tmp_path / "m.tflite", 1e-5 if quantization is None else 0.03),
    ):
        predictor = tfopt.Predictor.load(path)
        for rows in (x, x, x[::-1]):
            (found,) = predictor.predict(rows).values()
            reference = expected if rows is x else expected[::-1]
            np.testing.assert_allclose(found, reference, atol=tolerance * np.abs(expected).max())


def test_a_file_that_keeps_state_between_calls_is_caught(tmp_path, monkeypatch):
    monkeypatch.setattr(converting, "unfused", lambda *_: contextlib.nullcontext())
    layers = [tf_keras.layers.Input((6, 8)), tf_keras.layers.LSTM(16), tf_keras.layers.Dense(3)]
    for quantization in (None, "dynamic_int8"):
        with pytest.raises(VerificationError, match="'state' failed: .* keeps its value from call to call"):
            tfopt.export(
                tf_keras.Sequential(layers), tmp_path / "m.tflite", format="tflite", quantization=quantization
            )
    assert not list(tmp_path.iterdir())


def test_a_layer_that_keeps_state_by_itself_is_refused(keras, tmp_path):
    layers = [keras.layers.Input((6, 8), batch_size=1), keras.layers.LSTM(16, stateful=True, name="memory")]
    with pytest.raises(InputError, match=r"layer 'memory' keeps its state between calls"):
        tfopt.export(keras.Sequential(layers), tmp_path / "m.tflite", format="tflite")
    assert not list(tmp_path.iterdir())


def test_a_model_that_computes_nan_is_no_reference(keras, tmp_path):
    """NaN in the model and in the file are no agreement, whatever comparing numbers says."""
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(3)])
    model.layers[-1].kernel.assign(np.full((4, 3), np.nan))
    for path, format in ((tmp_path / "m", "saved_model"), (tmp_path / "m.tflite", "tflite")):
        with pytest.raises(InputError, match="holds NaN"):
            tfopt.export(model, path, format=format)
        assert not list(tmp_path.iterdir())


def test_models_with_a_list_of_inputs(keras, tmp_path):
    a, b = keras.layers.Input((4,), name="a"), keras.layers.Input((3,), name="b")
    model = keras.Model([a, b], keras.layers.Dense(2, name="y")(keras.layers.Concatenate()([a, b])))
    rng = np.random.default_rng(0)
    x = {"a": rng.standard_normal((3, 4)).astype(np.float32), "b": rng.standard_normal((3, 3)).astype(np.float32)}
    tfopt.export(model, tmp_path / "m.tflite", format="tflite")
    expected = np.asarray(model([x["a"], x["b"]]))
    np.testing.assert_allclose(tfopt.Predictor.load(tmp_path / "m.tflite").predict(x)["y"], expected, atol=1e-5)


def test_inspecting_a_model_leaves_it_as_it_was(generation, tokens):
    model = wide_bert(generation)
    before = np.asarray(model(tokens))
    inspection = tfopt.inspect(model, length=12)
    np.testing.assert_array_equal(np.asarray(model(tokens)), before)
    layers = {layer.name: layer for layer in inspection.layers}
    assert layers["layer_0_intermediate"].multiply_adds == 12 * 64 * 128
    assert sum(layer.time_share or 0 for layer in inspection.layers) > 0.1


def test_a_failed_export_keeps_the_good_artifact(tmp_path, tokens, monkeypatch):
    model, path = wide_bert("tf_keras"), tmp_path / "m.tflite"
    tfopt.export(model, path, format="tflite", lengths=[16])
    before = path.read_bytes()
    monkeypatch.setattr(export_verify, "_FLOAT32", dataclasses.replace(export_verify.FEW_BITS, error=-1.0))
    with pytest.raises(VerificationError, match="'max_abs_error' failed"):
        tfopt.export(model, path, format="tflite", lengths=[16])
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_pruned_zeros_survive_every_kind(generation, tokens, tmp_path):
    model = tfopt.prune(wide_bert(generation), 0.75)
    for format, quantization, jit in KINDS:
        path = tmp_path / (f"{quantization}.tflite" if format == "tflite" else f"m{jit}")
        tfopt.export(
            model,
            path,
            format=format,
            quantization=quantization,
            jit_compile=jit,
            representative=tokens,
            lengths=[16],
        )
        kernels = [w for w in tfopt.Predictor.load(path).weights() if w.is_kernel]
        zeros = sum((w.array == 0).sum() for w in kernels) / sum(w.array.size for w in kernels)
        assert 0.749 <= zeros <= 0.76  # int8 rounds a few more to zero


def convolution(keras):
    return keras.Sequential([
        keras.layers.Input((12, 12, 3), name="image"), keras.layers.Conv2D(8, 3, activation="relu"),
        keras.layers.BatchNormalization(), keras.layers.DepthwiseConv2D(3), keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(4, name="scores"),
    ])  # fmt: skip


def attention(keras):
    x = inputs = keras.layers.Input((6, 32), name="x")
    x = keras.layers.LayerNormalization()(keras.layers.MultiHeadAttention(2, 16)(x, x) + x)
    x = keras.layers.EinsumDense("abc,cd->abd", (6, 48), activation="gelu")(x)
    x = keras.Sequential([keras.layers.Dense(32), keras.layers.Flatten()], name="nested")(x)
    return keras.Model(inputs, {"a": keras.layers.Dense(3)(x), "b": keras.layers.Dense(2)(x)})


@pytest.mark.parametrize("make", [convolution, attention])
@pytest.mark.parametrize("quantization", [None, "dynamic_int8"])
def test_models_that_are_no_language_models(keras, make, quantization, tmp_path):
    model = make(keras)
    (spec,) = model.inputs
    x = np.random.default_rng(0).standard_normal((5, *spec.shape[1:])).astype(np.float32)
    tfopt.export(model, tmp_path / "m.tflite", format="tflite", quantization=quantization)
    tfopt.export(model, tmp_path / "m")
    expected = model(x)
    expected = {
        k: np.asarray(v) for k, v in (expected if isinstance(expected, dict) else {"scores": expected}).items()
    }
    for path, tolerance in ((tmp_path / "m", 1e-5), (tmp_path / "m.tflite", 1e-5 if quantization is None else 0.1)):
        found = tfopt.Predictor.load(path).predict(x)
        assert set(found) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, atol=tolerance)


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_a_model_that_serves_meanwhile_answers_as_ever(generation, tokens, tmp_path, quantization):
    """Layer norms are traced in another form, and weights stand on their grids while a file is compared."""
    model = wide_bert(generation)
    expected, wrong, stop = np.asarray(model(tokens)), [], threading.Event()
    # What is held to here is the model that serves; the differences of an untrained one are mostly rounding.
    exported = {"quantization": quantization, "lengths": [12], "accept": ["correlation"]}

    def serve():
        while not stop.is_set():
            found = np.asarray(model(tokens))
            wrong.append(float(np.abs(found - expected).max()))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        tfopt.export(model, tmp_path / "m.tflite", representative=tokens, **exported)
    finally:
        stop.set()
        thread.join()
    assert len(wrong) > 3 and max(wrong) == 0


def test_the_process_keeps_its_streams_and_its_log(tokens, tmp_path, capfd):
    before = (sys.stdout, sys.stderr, list(logging.getLogger().filters), list(logging.getLogger().handlers))
    kind = {"quantization": "int8", "lengths": [12], "accept": ["correlation"]}
    tfopt.export(wide_bert("keras"), tmp_path / "m.tflite", representative=tokens, **kind)
    after = (sys.stdout, sys.stderr, list(logging.getLogger().filters), list(logging.getLogger().handlers))
    assert before == after and capfd.readouterr().out == ""


def test_a_model_that_is_being_quantized_is_finished_first(make_bert, tmp_path):
    model = tfopt.quantize_aware(make_bert())
    with pytest.raises(InputError, match=r"is being quantized; call tfopt.finish\(model\) before it is exported"):
        tfopt.export(model, tmp_path / "m")


def test_a_fixed_shape_says_what_to_leave_out(keras, tmp_path, tfopt_main):
    inputs = keras.Input((5,), name="x")
    model = keras.Model(inputs, keras.layers.Dense(3)(inputs))
    with pytest.raises(InputError, match=r"no open axis: leave out lengths=\[32, 128\]"):
        tfopt.export(model, tmp_path / "m.tflite", lengths=[32, 128])
    model.save(tmp_path / "m.keras")
    code, _, told = tfopt_main("export", tmp_path / "m.keras", "-o", tmp_path / "m.tflite", "--length", 32)
    assert code == 2 and "leave out --length 32" in told


def test_subclassed_models_say_their_inputs(keras, tmp_path, caplog):
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(3)

        def call(self, x):
            return self.dense(x)

    model = Model()
    x = np.random.default_rng(0).standard_normal((2, 5)).astype(np.float32)
    expected = np.asarray(model(x))
    signature = {"input_signature": tf.TensorSpec((None, 5), tf.float32)}
    tfopt.export(model, tmp_path / "m.tflite", format="tflite", **signature)
    assert "cannot be copied from its configuration" in caplog.text
    np.testing.assert_allclose(
        tfopt.Predictor.load(tmp_path / "m.tflite").predict(x)["outputs"], expected, atol=1e-5
    )


def test_the_model_is_not_changed(keras, generation, tokens, tmp_path):
    model = wide_bert(generation)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = [keras_api.to_numpy(w.variable) for w in keras_api.weights(model)]
    tfopt.export(model, tmp_path / "m.tflite", format="tflite", quantization="dynamic_int8", lengths=[16])
    for weight, value in zip(keras_api.weights(model), before, strict=True):
        np.testing.assert_array_equal(keras_api.to_numpy(weight.variable), value)
    model.fit(tokens, np.zeros(16, int), epochs=1, verbose=0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"format": "onnx"}, "format must be one of saved_model, tflite, litertlm, got 'onnx'"),
        ({"format": "tflite", "quantization": "int3"}, "quantization must be one of None, float16, dynamic_int8"),
        ({"quantization": "float16"}, "needs format='tflite'"),
        ({"format": "tflite", "jit_compile": True}, "jit_compile needs format='saved_model'"),
        ({"format": "tflite", "path": "m"}, "must end in .tflite, got 'm'"),
        ({"path": "m.tflite", "format": "saved_model"}, "must be a folder"),
        ({"format": "tflite", "lengths": [0]}, "lengths must be positive"),
        ({"format": "tflite", "lengths": [16, 64]}, "does not take sequences of length 64"),
        ({"format": "tflite", "batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"representative": {"input_ids": np.zeros((2, 3))}}, "lacks input 'attention_mask'"),
        (
            {"representative": {"input_ids": np.zeros((0, 3)), "attention_mask": np.zeros((0, 3))}},
            "must have shape",
        ),
        (
            {"representative": {"input_ids": np.ones((2, 3)), "attention_mask": np.full((2, 3), np.nan)}},
            "holds NaN",
        ),
        ({"representative": {"input_ids": np.ones((2, 3)), "attention_mask": np.ones((4, 3))}}, "differ in rows"),
    ],
)
def test_bad_arguments_write_nothing(tmp_path, arguments, says):
    arguments = {"path": "m.tflite" if arguments.get("format") == "tflite" else "m", **arguments}
    path = tmp_path / arguments.pop("path")
    with pytest.raises(InputError, match=says):
        tfopt.export(wide_bert("tf_keras"), path, **arguments)
    assert not list(tmp_path.iterdir())


def test_sequences_without_a_mask_need_their_lengths(keras, tmp_path):
    inputs = keras.layers.Input((None,), dtype="int32", name="ids")
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(50, 8)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    with pytest.raises(InputError, match="pass lengths="):
        tfopt.export(model, tmp_path / "m.tflite", format="tflite")
    tfopt.export(model, tmp_path / "m.tflite", format="tflite", lengths=[4, 8])
    predictor = tfopt.Predictor.load(tmp_path / "m.tflite")
    ids = np.array([[1, 2, 3, 4]], np.int32)
    np.testing.assert_allclose(next(iter(predictor.predict(ids).values())), np.asarray(model(ids)), atol=1e-5)
    with pytest.raises(InputError, match="the artifact takes"):
        predictor.predict(ids[:, :3])
