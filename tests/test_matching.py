"""Each weight of a file gets the grid of its own layer, also where several hold equal values."""

import numpy as np
import pytest

import tfopt
from tfopt.tflite import flatbuffer as fb
from tfopt.tflite.owners import Owners
from tfopt.tflite.weights import PRODUCTS

from .decoders import make


def twins(keras):
    """Three layers with the same matrix; a converter stores it once."""
    inputs = keras.layers.Input((32,), name="x")
    layers = [keras.layers.Dense(32, activation="relu", name=name) for name in ("first", "second", "third")]
    x = inputs
    for layer in layers:
        x = layer(x)
    model = keras.Model(inputs, x)
    for layer in layers[1:]:
        layer.kernel.assign(layers[0].kernel)
    return model


def types_of(path):
    """Types of the constant matrices that operators multiply by, in order."""
    model = fb.read(path.read_bytes())
    names = {fb.FLOAT32: "float32", fb.INT8: "int8", fb.INT4: "int4"}
    graph = model.subgraphs[0]
    tensors = [
        graph.tensors[int(op.inputs[PRODUCTS[fb.code(model, op)][0]])]
        for op in graph.operators
        if fb.code(model, op) in PRODUCTS
    ]
    return [names[tensor.type] for tensor in tensors]


@pytest.mark.parametrize("bits", [{"first/kernel": 4}, {"second/kernel": 4}, {"third/kernel": 4}])
def test_equal_matrices_keep_bits_of_their_own(bits, keras, tmp_path):
    chosen = {"first/kernel": 8, "second/kernel": 8, "third/kernel": 8, **bits}
    artifact = tfopt.export(twins(keras), tmp_path / "m.tflite", quantization=tfopt.QuantizeConfig(bits=chosen))
    assert {layer.path: layer.bits for layer in artifact.layers} == chosen
    assert types_of(artifact.path) == ["int4" if bit == 4 else "int8" for bit in chosen.values()]


def test_what_is_excluded_stays_in_float_beside_an_equal_matrix(keras, tmp_path):
    config = tfopt.QuantizeConfig(exclude=["second", "third"])
    artifact = tfopt.export(twins(keras), tmp_path / "m.tflite", quantization=config)
    assert types_of(artifact.path) == ["int8", "float32", "float32"]


def test_static_files_keep_them_apart_too(keras, tmp_path):
    x = np.random.default_rng(0).standard_normal((32, 32)).astype(np.float32)
    config = tfopt.QuantizeConfig(
        activations="static", bits={"first/kernel": 4, "second/kernel": 8, "third/kernel": 8}
    )
    artifact = tfopt.export(twins(keras), tmp_path / "m.tflite", quantization=config, representative={"x": x})
    assert [layer.bits for layer in artifact.layers] == [4, 8, 8]
    weights = [w.array for w in tfopt.Predictor.load(artifact.path).weights() if w.array.shape == (32, 32)]
    assert sorted(len(np.unique(w / np.abs(w).max(1, keepdims=True)).tolist()) > 40 for w in weights) in (
        [False, True], [False, True, True],
    )  # fmt: skip


def test_files_that_generate(tmp_path):
    model = make("llama")
    by_name = {w.name: w for w in model.weights}
    twin = next(w for name, w in by_name.items() if name.startswith("layer_1_up/kernel"))
    twin.assign(next(w for name, w in by_name.items() if name.startswith("layer_0_up/kernel")))
    config = tfopt.QuantizeConfig(bits={"layer_0_up/kernel": 4})
    artifact = tfopt.export(model, tmp_path / "m.tflite", quantization=config, lengths=[16])
    bits = {layer.path: layer.bits for layer in artifact.layers}
    assert bits["layer_0_up/kernel"] == 4 and bits["layer_1_up/kernel"] == 8


def test_scopes_are_found_in_the_names_that_converters_make():
    owners = Owners.of(["a/kernel", "a/b/kernel", "a/b/recurrent", "odd name!/kernel"])
    assert len(set(owners.scopes.values())) == 3
    scope = owners.scopes["a/b"]
    assert owners.named_in([f"model/other/Relu;{scope}/MatMul"]) == ("a/b/kernel", "a/b/recurrent")
    assert owners.named_in([f"{scope}x/MatMul", "a/b/MatMul"]) == ()
    assert owners.named_in([f"{owners.scopes['odd name!']}/Tensordot;"]) == ("odd name!/kernel",)
