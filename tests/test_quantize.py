"""Quantization-aware training: what trains, what is refused, and that the file holds just what was trained."""

import dataclasses
import sys

import numpy as np
import pytest
import tensorflow as tf

import tfopt
from tfopt._keras import keras_api
from tfopt._keras.loading import load_model
from tfopt.callbacks import MagnitudePruning, QuantizationMonitor
from tfopt.compress import quantize
from tfopt.errors import InputError
from tfopt.quantization import NAMED, QuantizeConfig
from tfopt.quantization.record import record_of
from tfopt.quantization.simulation import simulation_of
from tfopt.schedules import ConstantSparsity
from tfopt.tflite.file import read_tflite

from .quantized_models import KINDS, signature, trained


def aware(**settings):
    return lambda model: tfopt.quantize_aware(model, **settings)


def file_of(model, kind, path, x, **settings):
    """The exported file's outputs, the artifact, and the predictor."""
    rows = {"inputs": x} if kind == "subclassed" else None
    artifact = tfopt.export(
        model, path, format="tflite", quantization="trained", representative=rows, **signature(kind), **settings
    )
    predictor = tfopt.Predictor.load(artifact.path)
    return next(iter(predictor.predict(x).values())), artifact, predictor


def check_grid(model, artifact):
    """Integers and scales of the file are those of the trained weights, read without any code of the writer."""
    record = record_of(model)
    stored = [c for c in read_tflite(artifact.path).constants if c.scale is not None and c.is_matrix]
    matrices = []
    for constant in stored:
        integers = np.moveaxis(constant.data, constant.axis, 0)
        matrices.append((integers.reshape(len(integers), -1), constant.scale.reshape(-1)))
    written = [layer.path for layer in artifact.layers if layer.bits < 32]
    assert written
    for grid in (record.grids[path] for path in written):
        same = [s for i, s in matrices if i.shape == grid.integers.shape and (i == grid.integers).all()]
        assert same, f"the integers of {grid.path} are not in the file"
        # A constant factor or, from a batch norm, one per output may have been folded into the scales.
        ratios = [s / grid.scale.reshape(-1) for s in same if s.size == grid.scale.size or grid.scale.size == 1]
        assert any(np.allclose(r, r[0], rtol=1e-5) for r in ratios) or grid.path.startswith("conv2d"), grid.path


@pytest.mark.parametrize(("kind", "bits"), [*((kind, 8) for kind in KINDS), ("dense", 4), ("attention", 4)])
def test_dynamic_file_computes_what_training_simulated(kind, bits, keras, tmp_path):
    model, x = trained(keras, kind, aware(weight_bits=bits))
    simulated = np.asarray(model(x, training=False))
    names = [type(layer).__name__ for _, layer in keras_api.walk(model)]
    assert tfopt.finish(model) is model and record_of(model) is not None
    assert [type(layer).__name__ for _, layer in keras_api.walk(model)] == names
    found, artifact, _ = file_of(model, kind, tmp_path / "m.tflite", x=x)
    check_grid(model, artifact)
    # LiteRT rounds the inputs of dense products as simulated; of convolutions, with a range per sample.
    reach = np.ptp(simulated)
    assert np.abs(found - simulated).max() < (0.03 if kind in ("conv", "conv1d") else 0.01) * reach


@pytest.mark.parametrize("kind", ["dense", "nested"])
def test_static_file_is_within_one_step_of_the_simulation(kind, keras, tmp_path):
    model, x = trained(keras, kind, aware(activations="static"), epochs=4)
    simulated = np.asarray(model(x, training=False))
    tfopt.finish(model)
    found, artifact, predictor = file_of(model, kind, tmp_path / "m.tflite", x=x)
    details = predictor._interpreter.get_output_details()[0]
    assert details["dtype"] == np.int8 and predictor._interpreter.get_input_details()[0]["dtype"] == np.int8
    steps = np.abs(found - simulated) / details["quantization"][0]
    assert steps.max() < 1.01 if kind == "dense" else (np.mean(steps < 1.01) > 0.95 and steps.max() < 3.01)
    assert next(c.found for c in artifact.checks if c.name == "float_operators") == 0
    check_grid(model, artifact)


@pytest.mark.parametrize(("kind", "bits"), [("conv", 8), ("attention", 8), ("subclassed", 8), ("attention", 16)])
def test_static_files_of_deeper_models(kind, bits, keras, tmp_path):
    model, x = trained(keras, kind, aware(activations="static", activation_bits=bits), epochs=4)
    simulated = np.asarray(model(x, training=False))
    tfopt.finish(model)
    found, artifact, _ = file_of(model, kind, tmp_path / "m.tflite", x=x)
    assert np.sqrt(np.mean((found - simulated) ** 2)) < 0.05 * np.ptp(simulated)
    ranges = record_of(model).ranges
    if kind == "attention":
        points = {key.rpartition(":")[2] for key in ranges}
        assert {"scores", "context", "normed", "output", "input0"} <= points
    assert artifact.layers and all(layer.bits <= 8 for layer in artifact.layers)


@pytest.mark.parametrize(
    ("name", "bits"),
    [("dynamic_int8", 8), ("dynamic_int4", 4), ("weight_only_int4", 4), ("weight_only_int8", 8)],
)
def test_bert_in_every_kind_of_file(name, bits, make_bert, tokens, keras, tmp_path):
    model = make_bert()
    quantize.prepare(model, NAMED[name])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(tokens, np.arange(16) % 3, epochs=1, verbose=0)
    simulated = np.asarray(model(tokens, training=False))
    tfopt.finish(model)
    artifact = tfopt.export(model, tmp_path / "m.tflite", quantization=name, lengths=[12])
    check_grid_paths = [layer.path for layer in artifact.layers if layer.bits == 32]
    assert check_grid_paths == ["token_type_embeddings/embeddings", "position_embeddings/embeddings"]
    found = tfopt.Predictor.load(artifact.path).predict(tokens)["logits"]
    np.testing.assert_allclose(found, simulated, atol=2e-2 * np.abs(simulated).max())
    table = next(c for c in read_tflite(artifact.path).constants if c.is_lookup)
    assert table.bits == bits and table.scale.shape == (300,) and table.readers == {"EMBEDDING_LOOKUP"}


def test_blocks(make_bert, tokens, keras, tmp_path):
    model = make_bert()
    tfopt.quantize_aware(model, weight_bits=4, weight_granularity=32)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(tokens, np.arange(16) % 3, epochs=1, verbose=0)
    simulated = np.asarray(model(tokens, training=False))
    tfopt.finish(model)
    artifact = tfopt.export(model, tmp_path / "m.tflite", format="tflite", quantization="trained", lengths=[12])
    check_grid(model, artifact)
    assert {x.granularity for x in artifact.layers if x.bits == 4} == {"block 32"}
    found = tfopt.Predictor.load(artifact.path).predict(tokens)["logits"]
    np.testing.assert_allclose(found, simulated, atol=2e-2 * np.abs(simulated).max())


def test_the_record_goes_with_the_file(keras, tmp_path):
    model, x = trained(keras, "dense", aware(activations="static", weight_bits=5, weight_scale="learned"))
    simulated = np.asarray(model(x, training=False))
    tfopt.finish(model)
    assert len(np.unique(keras_api.to_numpy(model.layers[1].kernel)[:, 0])) <= 31
    keras_api.save_model(model, tmp_path / "m.keras")
    reloaded = load_model(tmp_path / "m.keras")
    before, after = record_of(model), record_of(reloaded)
    assert after.ranges == before.ranges and after.config == before.config
    for path, grid in before.grids.items():
        np.testing.assert_array_equal(after.grids[path].integers, grid.integers)
        np.testing.assert_array_equal(after.grids[path].scale, grid.scale)
    found, artifact, _ = file_of(reloaded, "dense", tmp_path / "m.tflite", x=x)
    check_grid(model, artifact)
    assert np.abs(found - simulated).max() < 0.02 * np.ptp(simulated)
    # Keras itself does not mind the extra member, but where zipfile loses its place (gh-127847 of CPython).
    if not ((3, 12) <= sys.version_info < (3, 12, 9) or (3, 13) <= sys.version_info < (3, 13, 2)):
        keras.models.load_model(tmp_path / "m.keras")


def test_warm_up_freeze_and_logs(keras):
    model, x = KINDS["dense"](keras)
    y = np.arange(48) % 3
    expected = np.asarray(model(x, training=False))
    tfopt.quantize_aware(model, activations="static", weight_bits=2, warmup_steps=6, freeze_after=9)
    model.compile(keras.optimizers.SGD(0.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = model.fit(x, y, batch_size=16, epochs=2, verbose=0, callbacks=[QuantizationMonitor()]).history
    np.testing.assert_allclose(model(x, training=False), expected, atol=1e-6)  # six steps: still float
    assert history["quantization_error"][-1] > 0.3 and history["observed_points"][-1] == 3
    assert "range_change" in history
    model.fit(x, y, batch_size=16, epochs=1, verbose=0)
    assert np.abs(model(x, training=False) - expected).max() > 0.05
    frozen = simulation_of(model).observed()
    model.fit(10 * x, y, batch_size=16, epochs=1, verbose=0)
    assert simulation_of(model).observed() == frozen


def test_learned_sizes_train_and_leave_nothing_behind(keras):
    model, x = KINDS["dense"](keras)
    before = len(model.trainable_variables)
    tfopt.quantize_aware(
        model, weight_bits=3, weight_scale="learned", activations="static", activation_range="learned"
    )
    model.compile(keras.optimizers.Adam(1e-2), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, np.arange(48) % 3, batch_size=16, epochs=4, verbose=0)
    simulation = simulation_of(model)
    moved = [np.abs(keras_api.to_numpy(gain)).max() for _, gain in simulation.steps.values()]
    moved += [np.abs(keras_api.to_numpy(p.gain)).max() for p in simulation.points.values() if p.gain is not None]
    assert len(model.trainable_variables) > before and min(moved[:2]) > 0 and max(moved[2:]) > 0
    tfopt.finish(model)
    assert len(model.trainable_variables) == before
    model.fit(x, np.arange(48) % 3, batch_size=16, epochs=1, verbose=0)  # still an ordinary model


def test_pruned_zeros_stay(keras, tmp_path):
    model, x = trained(keras, "dense", lambda m: tfopt.prune(m, 0.75), epochs=0)
    zeros = keras_api.to_numpy(model.layers[1].kernel) == 0
    tfopt.quantize_aware(model, weight_bits=4)
    assert zeros.mean() == 0.75
    model.fit(x, np.arange(48) % 3, epochs=3, verbose=0)
    tfopt.finish(model)
    assert (keras_api.to_numpy(model.layers[1].kernel)[zeros] == 0).all()
    artifact = tfopt.export(model, tmp_path / "m.tflite", format="tflite", quantization="trained")
    kernel = max(
        (w for w in tfopt.Predictor.load(artifact.path).weights() if w.is_kernel), key=lambda w: w.array.size
    )
    assert (kernel.array == 0).mean() >= 0.75


def test_pruning_and_rounding_in_one_fit(keras):
    model, x = KINDS["dense"](keras)
    tfopt.quantize_aware(model, weight_bits=4)
    model.compile(keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    pruning = MagnitudePruning(ConstantSparsity(0.5, 0, frequency=1))
    model.fit(x, np.arange(48) % 3, epochs=3, verbose=0, callbacks=[pruning])
    tfopt.finish(model)
    assert (keras_api.to_numpy(model.layers[1].kernel) == 0).mean() >= 0.5


def test_step_counts_with_several_steps_per_execution(keras):
    model, x = KINDS["dense"](keras)
    tfopt.quantize_aware(model)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, steps_per_execution=3)
    model.fit(x, np.arange(48) % 3, batch_size=8, epochs=2, verbose=0)
    assert int(simulation_of(model).counter.numpy()) == 12


REFUSED = [
    ({"weight_bits": 9}, "weight_bits must be 2 to 8 or None, got 9"),
    ({"weight_bits": 1}, "weight_bits must be 2 to 8"),
    ({"activation_bits": 4}, "activation_bits must be 8 with activations='dynamic', got 4"),
    ({"activation_bits": 16}, "activation_bits must be 8 with activations='dynamic', got 16"),
    ({"weight_granularity": 48}, "weight_granularity must be 'tensor', 'channel', 32, 64 or 128, got 48"),
    ({"weight_granularity": 32}, "weight_granularity=32 needs 4 bits or less"),
    ({"activations": "statc"}, "activations must be one of none, dynamic, static, got 'statc'"),
    ({"weight_symmetric": False}, "weight_symmetric=False needs activations='none'"),
    ({"activation_range": "learned"}, "activation_range='learned' needs activations='static'"),
    ({"warmup_steps": 5, "freeze_after": 3}, "freeze_after must not come before warmup_steps, got 3 and 5"),
    ({"weight_bit": 4}, "unknown setting 'weight_bit'"),
    ({"bits": {"dense*": 12}}, "must be 2 to 8 or None, got 12"),
    ({"bits": {"nothing": 4}}, "include pattern 'nothing' matches no layer"),
    ({"include": "Dense", "exclude": "Dense"}, "include and exclude contradict: all that 'Dense' includes"),
    ({"exclude": "Dense"}, "nothing to quantize in model"),
    ({"rounding": "gptq"}, "rounding and smooth are for quantization after training"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "message"), REFUSED, ids=lambda v: str(v)[:40])
def test_bad_settings_leave_the_model_alone(settings, message, keras):
    model, x = KINDS["dense"](keras)
    before = np.asarray(model(x))
    with pytest.raises(InputError) as caught:
        tfopt.quantize_aware(model, **settings)
    assert message in str(caught.value)
    assert simulation_of(model) is None and not any("call" in vars(layer) for _, layer in keras_api.walk(model))
    np.testing.assert_array_equal(model(x), before)


def test_bad_models_are_refused(keras):
    model, _ = KINDS["dense"](keras)
    with pytest.raises(InputError, match="is plain already, there is nothing to finish"):
        tfopt.finish(model)
    with pytest.raises(InputError, match="needs a model that finish"):
        tfopt.export(model, "never.tflite", format="tflite", quantization="trained")
    kernel = model.layers[1].kernel
    value = keras_api.to_numpy(kernel).copy()
    value[0, 0] = np.nan
    kernel.assign(value)
    with pytest.raises(InputError, match=r"weight 'dense[_0-9]*/kernel' holds NaN"):
        tfopt.quantize_aware(model)
    kernel.assign(np.nan_to_num(value))
    tfopt.quantize_aware(model)
    with pytest.raises(InputError, match="already being quantized"):
        tfopt.quantize_aware(model)
    tfopt.finish(model)
    with pytest.raises(InputError, match="already quantized; start from the float model"):
        tfopt.quantize_aware(model)
    with pytest.raises(InputError, match="trained with 8-bit weights, and dynamic_int4 would round them again"):
        tfopt.export(model, "never.tflite", format="tflite", quantization="dynamic_int4")


def test_unknown_layers_are_skipped_by_name_or_refused(keras):
    class Strange(keras.layers.Layer):
        def build(self, shape):
            self.secret = self.add_weight(name="secret", shape=(24, 24), initializer="ones")

        def call(self, x):
            return x @ tf.convert_to_tensor(self.secret)

    model = keras.Sequential([keras.layers.Input((24,)), Strange(name="strange"), keras.layers.Dense(3)])
    with pytest.raises(InputError, match="weight 'strange/secret': layer type Strange is not known"):
        tfopt.quantize_aware(model, strict=True)
    prepared = quantize.prepare(model, QuantizeConfig())
    assert [(s.path, s.reason) for s in prepared.skipped] == [
        ("strange/secret", "layer type Strange is not known")
    ]  # fmt: skip


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_grouped_attention_in_static_mode(dropout, tmp_path):
    import keras

    keras.utils.set_random_seed(10)  # with this one, a mask ten times lower was lost in the file
    layers = keras.layers
    inputs = layers.Input((10, 32), name="x")
    attended = layers.GroupQueryAttention(16, 4, 2, dropout=dropout)(inputs, inputs, use_causal_mask=True)
    model = keras.Model(inputs, layers.Dense(3)(layers.Add()([inputs, attended])))
    x = np.random.default_rng(0).standard_normal((32, 10, 32)).astype(np.float32)
    before = np.asarray(model(x))
    tfopt.quantize_aware(model, activations="static")
    model.compile(keras.optimizers.Adam(1e-4), "mse")
    model.fit(x, before, verbose=0)
    simulated = np.asarray(model(x, training=False))
    assert 0 < np.abs(simulated - before).max() < 0.2 * np.ptp(before)
    tfopt.finish(model)
    assert {"scores", "context"} <= {key.rpartition(":")[2] for key in record_of(model).ranges}
    found, artifact, _ = file_of(model, "", tmp_path / "m.tflite", x=x)
    assert np.sqrt(np.mean((found - simulated) ** 2)) < 0.02 * np.ptp(simulated)
    floats = next(c.found for c in artifact.checks if c.name == "float_operators")
    assert floats <= 2  # litert-quantizer has no integer TILE, by which the heads are repeated


def test_kerashub_models(tmp_path):
    hub = pytest.importorskip("keras_hub", reason="needs the extra kerashub")
    model = hub.models.BertBackbone(
        vocabulary_size=200, num_layers=1, num_heads=2, hidden_dim=32, intermediate_dim=64, max_sequence_length=16
    )
    inputs = {
        "token_ids": np.arange(32).reshape(2, 16), "segment_ids": np.zeros((2, 16), int),
        "padding_mask": np.ones((2, 16), int),
    }  # fmt: skip
    before = np.asarray(model(inputs)["sequence_output"])
    prepared = quantize.prepare(model, QuantizeConfig(weight_bits=4))
    after = np.asarray(model(inputs)["sequence_output"])
    assert 0 < np.abs(after - before).max() < np.abs(before).max()
    kinds = {type(p.weight.layer).__name__ for p in simulation_of(model).plan.weights}
    assert {"EinsumDense", "Dense", "ReversibleEmbedding"} <= kinds
    assert all(s.reason for s in prepared.skipped)
    quantize.finish(model)
    rows = {name: np.repeat(value, 4, 0).astype(np.int32) for name, value in inputs.items()}
    artifact = tfopt.export(
        model, tmp_path / "m.tflite", format="tflite", quantization="trained", representative=rows, lengths=[16]
    )
    assert artifact.max_abs_error < 0.05 and sum(layer.bits == 4 for layer in artifact.layers) >= 6


def test_names_are_whole_configurations():
    assert all(dataclasses.is_dataclass(c) for c in NAMED.values())
    assert NAMED["dynamic_int4_block64"].weight_granularity == 64 and NAMED["int16"].activation_symmetric


def test_an_error_while_putting_rounding_in_takes_it_out_again(keras, monkeypatch):
    model, x = KINDS["attention"](keras)
    before = np.asarray(model(x))
    from tfopt.quantization import simulation

    real = simulation.Replaced.put

    def failing(self, owner, name, call):
        if "norm" in owner.name:
            raise ValueError("broken layer")
        real(self, owner, name, call)

    monkeypatch.setattr(simulation.Replaced, "put", failing)
    with pytest.raises(ValueError, match="broken layer"):
        tfopt.quantize_aware(model, activations="static")
    assert simulation_of(model) is None and not any("call" in vars(layer) for _, layer in keras_api.walk(model))
    np.testing.assert_array_equal(model(x), before)


def test_models_that_cannot_be_told_apart_are_refused(keras):
    class Twins(keras.Model):
        def __init__(self):
            super().__init__()
            self.a, self.b = keras.layers.Dense(8, name="d"), keras.layers.Dense(8, name="d")

        def call(self, x):
            return self.b(self.a(x))

    twins = Twins()
    twins(np.ones((2, 8), np.float32))
    with pytest.raises(InputError, match="two weights are named 'd/kernel'; give their layers different names"):
        tfopt.quantize_aware(twins)


def test_zero_kernels_train_and_trained_models_stay_as_they_were(keras, tmp_path):
    inputs = keras.layers.Input((24,))
    model = keras.Model(inputs, keras.layers.Dense(64, kernel_initializer="zeros")(inputs))
    tfopt.quantize_aware(model)
    model.compile(keras.optimizers.Adam(1e-2), "mse")
    x = np.random.default_rng(0).standard_normal((48, 24)).astype(np.float32)
    model.fit(x, np.tile(x, 3)[:, :64], epochs=2, verbose=0)
    tfopt.finish(model)
    assert np.abs(keras_api.to_numpy(model.layers[1].kernel)).max() > 0
    model.fit(x, np.tile(x, 3)[:, :64], epochs=1, verbose=0)
    with pytest.raises(InputError, match="changed after finish"):
        tfopt.export(model, tmp_path / "m.tflite", format="tflite", quantization="dynamic_int8")


def test_widest_ranges_are_those_of_any_replica(keras):
    from tfopt.train import make_strategy

    strategy = make_strategy(2)
    with strategy.scope():
        model, x = KINDS["dense"](keras)
        tfopt.quantize_aware(model, activations="static", activation_bits=16)
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    x = x.copy()
    x[0, 0] = 100
    model.fit(x, np.arange(48) % 3, batch_size=48, epochs=1, verbose=0)
    assert simulation_of(model).observed()["model:input0"][1] == 100
