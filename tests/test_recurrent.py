"""Recurrent layers in integers: trained, after training, with and without ranges of activations."""

import numpy as np
import pytest

import tfopt
from tfopt._keras.keras_api import keras_module
from tfopt.errors import InputError
from tfopt.numerics.agreement import correlation
from tfopt.quantization.record import record_of
from tfopt.tflite.file import read_tflite

KINDS = {
    "lstm": lambda layers: layers.LSTM(16),
    "both ways": lambda layers: layers.Bidirectional(layers.LSTM(8, return_sequences=True)),
    "gru": lambda layers: layers.GRU(16),
    "simple": lambda layers: layers.SimpleRNN(16),
    "stacked": lambda layers: layers.RNN([layers.LSTMCell(16), layers.GRUCell(16)]),
}


def make(keras, kind):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Input((10, 32), name="x"), KINDS[kind](keras.layers), keras.layers.Flatten()]
    return keras.Sequential([*layers, keras.layers.Dense(4, name="y")])


@pytest.fixture(scope="module")
def series():
    return np.random.default_rng(0).standard_normal((32, 10, 32)).astype(np.float32)


def agrees(artifact, model, x, least):
    (found,) = tfopt.Predictor.load(artifact.path).predict(x).values()
    return correlation(found, np.asarray(model(x))) > least


@pytest.mark.parametrize("kind", KINDS)
def test_static_integers_of_recurrent_models(keras, generation, tmp_path, series, kind):
    """They were refused after everything was trained: nothing static is inside a loop of a TFLite file."""
    model = make(keras, kind)
    artifact = tfopt.export(
        model, tmp_path / "m.tflite", quantization="int8", representative={name_of(model): series}
    )
    assert agrees(artifact, model, series, 0.97)
    kernels = [c for c in read_tflite(artifact.path).constants if c.is_kernel and c.data.size >= 512]
    assert kernels and {c.dtype for c in kernels} == {"int8"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activations", ["dynamic", "static"])
def test_kernels_of_cells_are_trained_on_their_grids(keras, tmp_path, series, kind, activations):
    model = make(keras, kind)
    aware = tfopt.quantize_aware(model, activations=activations)
    target = np.random.default_rng(1).standard_normal((32, 4)).astype(np.float32)
    aware.compile(keras.optimizers.Adam(1e-3), "mse")
    aware.fit(series, target, batch_size=8, epochs=2, verbose=0)
    finished = tfopt.finish(aware)
    record = record_of(finished)
    cells = [path for path in record.grids if "recurrent_kernel" in path]
    assert len(cells) == (2 if kind in ("both ways", "stacked") else 1) and not record.skipped
    artifact = tfopt.export(
        finished, tmp_path / "m.tflite", quantization="trained", representative={name_of(model): series}
    )
    assert agrees(artifact, finished, series, 0.97)
    layers = {layer.path: layer.bits for layer in artifact.layers}
    assert {layers[path] for path in record.grids} == {8}


def test_static_training_without_data_at_export_says_what_to_give(tmp_path, series):
    import keras

    aware = tfopt.quantize_aware(make(keras, "gru"), activations="static")
    aware.compile("adam", "mse")
    aware.fit(series, np.zeros((32, 4)), verbose=0)
    with pytest.raises(InputError, match="static quantization needs representative data"):
        tfopt.export(tfopt.finish(aware), tmp_path / "m.tflite", quantization="trained")


def name_of(model):
    return model.inputs[0].name.partition(":")[0]


def test_loops_of_convolutions_are_refused_before_anything_is_trained(tmp_path):
    tf_keras = keras_module("tf_keras")
    inputs = tf_keras.Input((4, 8, 8, 2), name="film")
    x = tf_keras.layers.ConvLSTM2D(3, 3)(inputs)
    model = tf_keras.Model(inputs, tf_keras.layers.Dense(2)(tf_keras.layers.Flatten()(x)))
    with pytest.raises(InputError, match="of class ConvLSTM2D runs as a loop in tf_keras.*use dynamic activations"):
        tfopt.quantize_aware(model, activations="static")
    tfopt.finish(tfopt.quantize_aware(model, activations="dynamic"))
