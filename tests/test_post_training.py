"""Quantization without training: calibration, GPTQ, smoothing, and bits by sensitivity."""

import contextlib
import dataclasses

import numpy as np
import pytest

import tfopt
from tfopt._keras import keras_api
from tfopt._keras.keras_io import inputs_of
from tfopt.data import batches
from tfopt.errors import InputError, VerificationError, WorkFailedError
from tfopt.export import decoder, integers
from tfopt.export.decoder import far_channels
from tfopt.numerics.agreement import MEASURES
from tfopt.quantization import NAMED, QuantizeConfig
from tfopt.quantization import calibration as calibrating
from tfopt.quantization.calibration import quantize_weights
from tfopt.quantization.gptq import gptq
from tfopt.quantization.record import Grid
from tfopt.quantization.sensitivity import choose_bits
from tfopt.quantization.simulation import simulation_of
from tfopt.quantization.smooth import find_places, smoothed
from tfopt.quantization.weights import on_grids
from tfopt.tflite import grids, offsets
from tfopt.tflite.file import read_tflite

from .decoders import FAMILIES, logits_of, make
from .decoders import tokens as some_tokens
from .quantized_models import KINDS, signature, trained


def values(model):
    return [keras_api.to_numpy(w.variable) for w in keras_api.weights(model)]


@pytest.mark.parametrize("name", [n for n in NAMED if "64" not in n and "128" not in n])
def test_every_kind_of_file(name, make_bert, tokens, tmp_path):
    model = make_bert()
    before = values(model)
    artifact = tfopt.export(
        model, tmp_path / "m.tflite", format="tflite", quantization=name, representative=tokens, lengths=[12]
    )
    assert artifact.quantization == name and artifact.agreement >= 0.7
    names = {check.name for check in artifact.checks}
    assert "grids" in names and ("calibration" in names) == NAMED[name].is_static
    for old, new in zip(before, values(model), strict=True):
        np.testing.assert_array_equal(old, new)
    assert simulation_of(model) is None
    reasons = {layer.reason for layer in artifact.layers if layer.bits == 32}
    assert reasons == {"the converter folded it into float constants"}


@pytest.mark.parametrize("kind", ["conv", "conv1d", "attention", "subclassed"])
@pytest.mark.parametrize("name", ["dynamic_int4", "int8"])
def test_other_models(kind, name, keras, tmp_path):
    model, x = KINDS[kind](keras)
    rows = dict.fromkeys(inputs_of(model, signature(kind).get("input_signature")).specs, x)
    artifact = tfopt.export(
        model, tmp_path / "m.tflite", format="tflite", quantization=name, representative=rows, **signature(kind)
    )
    found = next(iter(tfopt.Predictor.load(artifact.path).predict(x).values()))
    expected = np.asarray(model(x, training=False))
    assert np.sqrt(np.mean((found - expected) ** 2)) < 0.2 * np.ptp(expected)


def test_bytes(keras, tmp_path):
    layers = keras.layers
    inputs = layers.Input((16,), dtype="int32")
    x = layers.Dense(1024, activation="relu")(layers.Embedding(4000, 256)(inputs))
    model = keras.Model(inputs, layers.Dense(128)(x))
    sizes = {}
    for name in (None, "dynamic_int8", "dynamic_int4", "dynamic_int4_block32"):
        artifact = tfopt.export(model, tmp_path / "m.tflite", format="tflite", quantization=name)
        sizes[name] = artifact.path.stat().st_size
    assert sizes["dynamic_int8"] < 0.27 * sizes[None]
    assert sizes["dynamic_int4"] < 0.15 * sizes[None] and sizes["dynamic_int4_block32"] < 0.15 * sizes[None]


BAD_DATA = [
    (lambda x: x[:0], "must have shape"), (lambda x: x[:, :3], "must have shape"),
    (lambda x: np.where(x == x.max(), np.nan, x), "holds NaN or infinity"),
    (lambda x: np.where(x == x.max(), np.inf, x), "holds NaN or infinity"),
    (lambda x: np.repeat(x[:1], 9, 0), "representative data is constant: all 9 rows are the same"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), BAD_DATA, ids=["empty", "shape", "nan", "inf", "constant"])
def test_bad_representative_data(damage, message, keras, tmp_path):
    model, x = KINDS["dense"](keras)
    name = next(iter(inputs_of(model).specs))
    with pytest.raises(InputError, match=message):
        tfopt.export(
            model, tmp_path / "m.tflite", format="tflite", quantization="int8", representative={name: damage(x)}
        )
    assert not list(tmp_path.iterdir())


def test_data_is_asked_for(keras, tmp_path):
    model, _ = KINDS["dense"](keras)
    for quantization in ("int8", dataclasses.replace(NAMED["dynamic_int4"], rounding="gptq")):
        with pytest.raises(InputError, match="need representative data: pass representative="):
            tfopt.export(model, tmp_path / "m.tflite", format="tflite", quantization=quantization)
    with pytest.raises(InputError, match="quantization must be one of None, float16, dynamic_int8"):
        tfopt.export(model, tmp_path / "m.tflite", format="tflite", quantization="int9")


def test_a_calibration_that_does_not_run_is_caught(keras, tmp_path, monkeypatch):
    model, x = KINDS["dense"](keras)
    name = next(iter(inputs_of(model).specs))
    monkeypatch.setattr(calibrating, "call", lambda *args: None)
    with pytest.raises(WorkFailedError, match="calibration did not run: 0 of 6 batches seen"):
        tfopt.export(model, tmp_path / "m.tflite", format="tflite", quantization="int8", representative={name: x})
    assert simulation_of(model) is None


def test_a_file_with_other_integers_is_caught(keras, tmp_path, monkeypatch):
    model, _ = KINDS["dense"](keras)
    real = integers.write_grids

    def shifted(*args, **named):
        content, matched, layers = real(*args, **named)
        changed = [
            dataclasses.replace(m, grid=dataclasses.replace(m.grid, integers=m.grid.integers[::-1]))
            for m in matched
        ]
        return content, changed, layers

    monkeypatch.setattr(integers, "write_grids", shifted)
    with pytest.raises(VerificationError, match="'grids' failed: weight .* holds other integers than its grid"):
        tfopt.export(model, tmp_path / "m.tflite", format="tflite", quantization="dynamic_int8")


def grid(matrix, bits=4):
    scale = np.abs(matrix).max(1, keepdims=True) / (2 ** (bits - 1) - 1)
    spec = QuantizeConfig(weight_bits=bits).spec(bits, False)
    integers = np.rint(matrix / scale).astype(np.int8)
    return Grid(
        "w",
        spec,
        integers,
        scale=scale.astype(np.float32),
        zero=np.zeros_like(scale),
        source=matrix.astype(np.float32),
    )


def test_gptq_beats_rounding_to_nearest_on_correlated_inputs():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 8)) @ rng.standard_normal((8, 48)) + 0.1 * rng.standard_normal((400, 48))
    w = rng.standard_normal((24, 48))
    nearest = grid(w)
    found = gptq(nearest, x.T @ x)
    errors = [np.mean((x @ (w - g.values).T) ** 2) / np.mean((x @ w.T) ** 2) for g in (found.grid, nearest)]
    assert found.improved and errors[0] < 0.5 * errors[1]
    np.testing.assert_allclose([found.error, found.error_nearest], errors, rtol=1e-3)
    np.testing.assert_array_equal(found.grid.scale, nearest.scale)
    # On inputs without correlation there is nothing to gain, and rounding to nearest is kept where it is better.
    plain = gptq(nearest, np.eye(48))
    assert not plain.improved and (plain.grid.integers == nearest.integers).all()


@pytest.mark.parametrize("name", ["dynamic_int4", "dynamic_int4_block32"])
def test_gptq_in_an_export(name, make_bert, tokens, tmp_path):
    config = dataclasses.replace(NAMED[name], rounding="gptq")
    artifact = tfopt.export(
        make_bert(),
        tmp_path / "m.tflite",
        format="tflite",
        quantization=config,
        representative=tokens,
        lengths=[12],
    )
    check = next(c for c in artifact.checks if c.name == "gptq")
    better, _, tried = check.found.split(" matrices")[0].split(" ")
    assert int(tried) == 7 and int(better) >= 6


def test_smoothing_changes_weights_and_not_the_function(keras):
    layers = keras.layers
    inputs = layers.Input((6, 16))
    x = layers.LayerNormalization(name="norm")(inputs)
    x = layers.MultiHeadAttention(2, 8, name="attention")(x, x)
    x = layers.Dense(32, activation="relu", name="first")(x)
    model = keras.Model(inputs, layers.Dense(4, name="second")(x))
    model.get_layer("norm").gamma.assign(np.geomspace(0.1, 30, 16).astype(np.float32))
    rows = np.random.default_rng(0).standard_normal((32, 6, 16)).astype(np.float32)
    info = inputs_of(model)
    samples = {next(iter(info.specs)): rows}
    assert [source.name for source, _ in find_places(model)] == ["norm", "first"]
    before, expected = values(model), np.asarray(model(rows))
    norm = keras.Model(inputs, model.get_layer("norm").output)
    spread = np.ptp(np.log(np.abs(np.asarray(norm(rows))).max((0, 1))))
    with smoothed(model, info, samples, strength=0.5) as places:
        assert places == 2
        np.testing.assert_allclose(model(rows), expected, atol=2e-5 * np.abs(expected).max())
        assert np.ptp(np.log(np.abs(np.asarray(norm(rows))).max((0, 1)))) < 0.7 * spread
    for old, new in zip(before, values(model), strict=True):
        np.testing.assert_array_equal(old, new)
    with pytest.raises(InputError, match="smooth must be above 0 and below 1, got 1.5"):
        QuantizeConfig(smooth=1.5)


def test_smoothing_in_an_export(keras, tmp_path):
    model, x = KINDS["dense"](keras)
    rows = {next(iter(inputs_of(model).specs)): x}
    config = dataclasses.replace(NAMED["int8"], smooth=0.5)
    artifact = tfopt.export(model, tmp_path / "m.tflite", format="tflite", quantization=config, representative=rows)
    assert next(c.found for c in artifact.checks if c.name == "smooth") == "1 places"


def test_sensitivity_and_budgets(keras, tmp_path):
    model, x = trained(keras, "attention", epochs=2)
    rows = {next(iter(inputs_of(model).specs)): x}
    before = values(model)
    table = tfopt.measure_sensitivity(model, rows)
    for old, new in zip(before, values(model), strict=True):
        np.testing.assert_array_equal(old, new)
    losses = {(r.path, r.bits): r.loss for r in table.rows}
    assert len(losses) == 14 and all(losses[p, 4] > losses[p, 8] > 0 for p, _ in losses)
    sizes = {bits: sum(r.bytes for r in table.rows if r.bits == bits) for bits in (8, 4)}
    budget = (sizes[8] + sizes[4]) // 2
    config = table.within_bytes(budget)
    assert set(config.bits.values()) == {4, 8} and table.bytes_of(config) <= budget
    with pytest.raises(InputError, match=f"the weights take at least {sizes[4]:,} bytes"):
        table.within_bytes(100)
    artifact = tfopt.export(model, tmp_path / "m.tflite", format="tflite", quantization=config, representative=rows)
    assert {layer.path: layer.bits for layer in artifact.layers} == dict(config.bits)
    assert {c.bits for c in read_tflite(artifact.path).constants if c.scale is not None and c.is_matrix} == {4, 8}

    def quality(candidate):
        return -sum(losses[p, b] for p, b in candidate.bits.items())

    middle = np.median([losses[key] for key in losses if key[1] == 4])
    chosen = table.within_loss(quality, -middle)
    assert quality(chosen) >= -middle and 4 in chosen.bits.values()
    with pytest.raises(InputError, match="with the most bits the quality is"):
        table.within_loss(lambda c: 0.0, 1.0)
    strict, _ = choose_bits(model, rows, QuantizeConfig(), max_loss=0)
    loose, _ = choose_bits(model, rows, QuantizeConfig(), max_loss=100)
    assert set(loose.bits.values()) == {4} and table.bytes_of(strict) > table.bytes_of(loose)
    with on_grids(model, calibrating.quantize_weights(model, strict)[0].grids):
        rounded = np.asarray(model(x))
    np.testing.assert_array_equal(rounded.argmax(-1), np.asarray(model(x)).argmax(-1))
    for old, new in zip(before, values(model), strict=True):
        np.testing.assert_array_equal(old, new)
    with pytest.raises(InputError, match="give either max_bytes or max_loss, got None and None"):
        choose_bits(model, rows, QuantizeConfig())
    assert "attention" in table.text() and table.save(tmp_path / "table.json").exists()


def test_samples_balanced_over_classes(finished_run):
    found = batches.samples(finished_run / "data", 20, split="train", balanced=True)
    assert len(found["label"]) == 20 and (np.bincount(found["label"]) == 10).all()
    assert found["input_ids"].shape == found["attention_mask"].shape
    assert found["attention_mask"].sum(1).max() == found["input_ids"].shape[1]


def test_smoothing_restores_what_it_touches_twice_and_leaves_alone_what_it_must(keras):
    layers = keras.layers
    inputs = layers.Input((12,))
    x = layers.Dense(16, activation="relu", name="a")(inputs)
    x = layers.Dense(16, activation="relu", name="b")(x)
    side = layers.Dense(8, activation="relu6", name="capped")(x)
    model = keras.Model(inputs, [layers.Dense(4, name="c")(side), x])
    rows = 5 * np.random.default_rng(0).standard_normal((32, 12)).astype(np.float32)
    info = inputs_of(model)
    before = values(model)
    assert [source.name for source, _ in find_places(model)] == ["a"]
    with smoothed(model, info, {next(iter(info.specs)): rows}, strength=0.5):
        pass
    chain = keras.Sequential([layers.Input((12,)), *(layers.Dense(16, activation="relu") for _ in range(3))])
    saved, info = values(chain), inputs_of(chain)
    with smoothed(chain, info, {next(iter(info.specs)): rows}, strength=0.5) as places:
        assert places == 2
    for old, new in zip([*before, *saved], [*values(model), *values(chain)], strict=True):
        np.testing.assert_array_equal(old, new)


def test_static_files_leave_excluded_layers_in_float(keras, tmp_path):
    model, x = KINDS["dense"](keras)
    rows = {next(iter(inputs_of(model).specs)): x}
    config = QuantizeConfig(activations="static", exclude=model.layers[1].name)
    artifact = tfopt.export(model, tmp_path / "m.tflite", format="tflite", quantization=config, representative=rows)
    assert [layer.bits for layer in artifact.layers if layer.reason == "excluded"] == [32]
    kernels = [c for c in read_tflite(artifact.path).constants if c.is_matrix and c.data.size == 24 * 64]
    assert [c.dtype for c in kernels] == ["float32"]


def test_constants_through_layers_are_not_rounded(keras, tmp_path):
    """The barrier in the converted graph must not reach constants, which it would cut to its range."""
    import tensorflow as tf

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.table = keras.layers.Embedding(
                6, 64, embeddings_initializer=keras.initializers.RandomNormal(0, 9.0)
            )
            self.head = keras.layers.Dense(32)

        def call(self, x):
            return x + self.head(self.table(tf.range(6)))[0]

    model, x = Model(), np.random.default_rng(0).standard_normal((4, 32)).astype(np.float32)
    expected = np.asarray(model(x))
    spec = tf.TensorSpec([None, 32], tf.float32, name="inputs")
    with pytest.raises(VerificationError, match="none of the model's weights was found"):
        tfopt.export(
            model, tmp_path / "m.tflite", format="tflite", quantization="weight_only_int8", input_signature=spec
        )
    artifact = tfopt.export(model, tmp_path / "m.tflite", format="tflite", input_signature=spec)
    found = next(iter(tfopt.Predictor.load(artifact.path).predict(x).values()))
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_tables_of_an_odd_width_are_looked_up_right(keras, tmp_path):
    """LiteRT reads rows of 4 bits by whole bytes."""
    inputs = keras.layers.Input((6,), dtype="int32", name="input_ids")
    x = keras.layers.Embedding(40, 15, name="table")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling1D()(x)))
    samples = {"input_ids": np.random.default_rng(0).integers(0, 40, (32, 6)).astype(np.int32)}
    artifact = tfopt.export(
        model, tmp_path / "m.tflite", format="tflite", quantization="dynamic_int4", representative=samples
    )
    assert {layer.path: layer.bits for layer in artifact.layers}["table/embeddings"] == 4  # of the grid


def test_a_table_that_is_looked_up_and_multiplied_is_stored_once(tmp_path):
    """As the tied tables of KerasHub's models; static integers refused them (`axis 1 is out of bounds`)."""
    import keras

    class Tied(keras.layers.Embedding):
        def call(self, x, reverse=False):
            return keras.ops.matmul(x, keras.ops.transpose(self.embeddings)) if reverse else super().call(x)

        def compute_output_spec(self, x, reverse=False):
            width = self.input_dim if reverse else self.output_dim
            shape = (*x.shape[:-1], width) if reverse else (*x.shape, width)
            return keras.KerasTensor(shape, "float32")

    keras.utils.set_random_seed(0)
    table = Tied(200, 32, name="table", embeddings_initializer=keras.initializers.RandomNormal(stddev=1.0))
    inputs = keras.layers.Input((6,), dtype="int32", name="ids")
    x = keras.layers.Dense(32, activation="relu", name="dense")(keras.layers.Flatten()(table(inputs)))
    model = keras.Model(inputs, table(x, reverse=True))
    ids = {"ids": np.random.default_rng(0).integers(0, 200, (32, 6))}
    artifact = tfopt.export(model, tmp_path / "m.tflite", quantization="int8", representative=ids)
    (found,) = tfopt.Predictor.load(artifact.path).predict(ids).values()
    assert np.corrcoef(found.ravel(), np.asarray(model(ids["ids"])).ravel())[0, 1] > 0.98
    assert {layer.path: layer.bits for layer in artifact.layers}["table/embeddings"] == 8
    assert artifact.path.stat().st_size < 200 * 32 + 6 * 32 * 32 + 8000  # in bytes, each table once


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_smoothing_of_decoders(family, generation):
    """RMS norms, and what a gate is multiplied with on its way."""
    model = make(family, generation)
    names = {source.name: [p.name for p in products] for source, products in find_places(model)}
    assert names["layer_1_up"] == ["layer_1_down"] and "layer_1_gate" not in names
    assert names["layer_0_attention_norm"] == [f"layer_0_attention_{part}" for part in ("query", "key", "value")]
    ids = some_tokens(rows=2)
    samples = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    before, expected = values(model), logits_of(model, ids)
    up = model.get_layer("layer_1_up").kernel
    kept = np.array(up)
    with smoothed(model, inputs_of(model), samples, strength=0.5) as places:
        assert places == len(names)
        np.testing.assert_allclose(logits_of(model, ids), expected, atol=1e-4 * np.abs(expected).max())
        assert not np.allclose(np.array(up), kept)
    for old, new in zip(before, values(model), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_few_bits_are_spent_on_channels_that_carry_much(family, generation):
    """A factor of each channel takes less from the answers in 4 bits, and changes nothing without rounding."""
    model = make(family, generation)
    for layer in (0, 1):
        path = f"layer_{layer}_attention_norm/gamma"
        gamma = next(weight.variable for weight in keras_api.weights(model) if weight.path == path)
        gamma.assign(np.geomspace(0.05, 10, 32).astype(np.float32))
    ids = some_tokens(rows=4)
    samples = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    inputs, expected, before = inputs_of(model), logits_of(model, ids), values(model)
    config = QuantizeConfig(weight_bits=4, weight_granularity=32, include=["layer_*"])

    def error(**settings):
        with smoothed(model, inputs, samples, **settings) if settings else contextlib.nullcontext():
            np.testing.assert_allclose(logits_of(model, ids), expected, atol=1e-4 * np.abs(expected).max())
            record, _ = quantize_weights(model, config)
            with on_grids(model, record.grids):
                return float(np.square(logits_of(model, ids) - expected).mean())

    assert error(strength=0.5, few_bits=True) < 0.9 * error()
    for old, new in zip(before, values(model), strict=True):
        np.testing.assert_array_equal(old, new)


def test_four_bits_of_a_language_model_are_blocks_with_a_table_of_eight(tmp_path):
    model = make("llama")
    config = integers.config_named("dynamic_int4", model)
    assert (config.weight_granularity, config.table_bits, config.smooth) == (32, 8, integers.SMOOTH)
    artifact = tfopt.export(
        model, tmp_path / "m.tflite", quantization="dynamic_int4", lengths=[32], accept=MEASURES
    )
    bits = {layer.path: (layer.bits, layer.granularity) for layer in artifact.layers}
    assert bits["token_embeddings/embeddings"][0] == 8 and bits["layer_0_up/kernel"] == (4, "block 32")
    assert artifact.quantization == "dynamic_int4"
    only = integers.config_named("weight_only_int4", model)
    assert (only.weight_granularity, only.smooth) == ("channel", integers.SMOOTH), "those files hold no blocks"


def test_what_a_gate_makes_is_left_alone_where_it_is_an_output(keras):
    inputs = keras.Input((8,), name="x")
    layers = keras.layers
    product = layers.Multiply(name="product")(
        [layers.Dense(8, name="up")(inputs), layers.Dense(8, "relu", name="gate")(inputs)]
    )
    down = layers.Dense(4, name="down")(product)
    assert [s.name for s, _ in find_places(keras.Model(inputs, down))] == ["up"]
    assert find_places(keras.Model(inputs, [product, down])) == []


def test_a_configuration_goes_by_the_name_that_means_it():
    model = make("llama")
    smooth = integers.config_named("dynamic_int8", model)
    assert smooth.smooth == integers.SMOOTH and integers.resolve(smooth, model)[0] == "dynamic_int8"
    assert integers.resolve(QuantizeConfig(), model) == ("dynamic_int8", QuantizeConfig())
    assert integers.resolve(dataclasses.replace(smooth, smooth=0.3), model)[0] == "custom"


@pytest.mark.parametrize("tied", [True, False])
def test_channels_that_reach_far(tied, tmp_path, monkeypatch):
    """Two channels of the last hidden states reach thirty times as far: they are multiplied by themselves, in float."""
    model = make(dataclasses.replace(FAMILIES["llama"], vocab_size=2048, tie_word_embeddings=tied))
    gamma = model.get_layer("final_norm").gamma
    gamma.assign(np.where(np.isin(np.arange(32), (3, 7)), 30.0, 1.0) * gamma.numpy())
    ids = some_tokens(rows=4)
    apart = far_channels(model, ids)
    assert apart.channels == (3, 7) and apart.columns.shape == (2, 2048)
    assert far_channels(make("llama"), ids) is None and far_channels(make("gemma2"), ids) is None
    limits = ["signal_to_noise", "correlation", "next_tokens", "divergence", "perplexity"]
    found = {}
    for name in ("apart", "plain"):
        if name == "plain":
            monkeypatch.setattr(decoder, "far_channels", lambda model, ids: None)
        path = tmp_path / f"{name}.tflite"
        artifact = tfopt.export(
            model, path, quantization=QuantizeConfig(smooth=0.5, include=["token_embeddings"]), lengths=[32], accept=limits,
            representative={"input_ids": ids, "attention_mask": np.ones_like(ids)},
        )  # fmt: skip
        found[name] = next(c.found for c in artifact.checks if c.name == "signal_to_noise")
        tables = [c for c in read_tflite(path).constants if c.shape == (2048, 32)]
        assert sorted(c.dtype for c in tables) == (["int8"] if tied else ["float32", "int8"])
        own = [c for c in read_tflite(path).constants if c.shape == (2048, 2)]
        assert [c.dtype for c in own] == (["float32"] if name == "apart" else [])
    monkeypatch.undo()
    whole = tfopt.export(model, tmp_path / "m.tflite", quantization="dynamic_int8", lengths=[32], accept=limits)
    assert whole.quantization == "dynamic_int8" and [
        c.dtype for c in read_tflite(whole.path).constants if c.shape == (2048, 2)
    ] == ["float32"]  # though all else is rounded
    # The norm before a table that is not tied takes the spread itself.
    assert found["apart"] > found["plain"] + 0.3 or not tied


def layers_of_all_kinds(keras, width):
    layers = keras.layers
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    dense = keras.Sequential([layers.Input((width,)), layers.Dense(48, "relu"), layers.Dense(40)])
    for weight in dense.trainable_weights:  # far from zero on one side, as norms leave some
        weight.assign(keras_api.to_numpy(weight) + 0.3)
    yield dense, rng.standard_normal((5, width)).astype(np.float32)
    yield (
        keras.Sequential([layers.Input((8, 8, 16)), layers.Conv2D(32, 3), layers.Flatten(), layers.Dense(32)]),
        rng.standard_normal((5, 8, 8, 16)).astype(np.float32),
    )
    yield (
        keras.Sequential(
            [layers.Input((4,), dtype="int32"), layers.Embedding(100, width), layers.Flatten(), layers.Dense(32)]
        ),
        rng.integers(0, 100, (5, 4)).astype(np.int32),
    )


def agrees_with_its_grids(model, x, config, path):
    """The file's constants."""
    tfopt.export(model, path, quantization=config, accept=MEASURES)
    (found,) = tfopt.Predictor.load(path).predict(x).values()
    with on_grids(model, quantize_weights(model, config)[0].grids):
        want = np.asarray(model(x))
    assert np.corrcoef(found.ravel(), want.ravel())[0, 1] > 0.9995
    return [c for c in read_tflite(path).constants if c.is_matrix]


@pytest.mark.parametrize("name", ["dynamic_int4", "weight_only_int4"])
@pytest.mark.parametrize("width", [36, 38])
def test_two_bits_take_two_bits(keras, tmp_path, name, width):
    """LiteRT multiplies them and looks them up by rows of whole bytes; its convolutions make NaN of them."""
    config = dataclasses.replace(NAMED[name], weight_bits=2)
    for number, (model, x) in enumerate(layers_of_all_kinds(keras, width)):
        constants = agrees_with_its_grids(model, x, config, tmp_path / f"{number}.tflite")
        for constant in constants:
            narrow = constant.readers & {"FULLY_CONNECTED", "EMBEDDING_LOOKUP", "DEQUANTIZE"}
            narrow = narrow and len(constant.shape) == 2 and constant.shape[-1] % 4 == 0
            assert constant.bits == (2 if narrow else 4), constant
            assert set(np.unique(constant.data)) <= {-1, 0, 1}


def test_blocks_lie_where_their_values_do(keras, tmp_path, monkeypatch):
    plain = dataclasses.replace(NAMED["dynamic_int4_block32"], weight_scale="max")
    offset = dataclasses.replace(plain, weight_symmetric=False)
    for number, (model, x) in enumerate(layers_of_all_kinds(keras, 64)):
        constants = agrees_with_its_grids(model, x, offset, tmp_path / f"{number}.tflite")
        dense = [c for c in constants if c.bits == 4 and c.scale.ndim == 2 and "FULLY_CONNECTED" in c.readers]
        assert sum("/offsets/" in c.name for c in constants) == len(dense) > 0
        errors, want = [], np.asarray(model(x))
        for config in (plain, offset):
            with on_grids(model, quantize_weights(model, config)[0].grids):
                errors.append(np.square(np.asarray(model(x)) - want).mean())
        assert number or errors[1] < 0.8 * errors[0]


def test_lost_offsets_are_seen(keras, tmp_path, monkeypatch):
    offset = dataclasses.replace(NAMED["dynamic_int4_block32"], weight_symmetric=False)
    model, _ = next(layers_of_all_kinds(keras, 64))
    right = offsets._narrow
    monkeypatch.setattr(offsets, "_narrow", lambda grid: (0 * right(grid)[0], right(grid)[1]))
    with pytest.raises(VerificationError, match="'(max_abs_error|rms_error|signal_to_noise|correlation)' failed"):
        tfopt.export(model, tmp_path / "m.tflite", quantization=offset)
    monkeypatch.undo()
    monkeypatch.setattr(grids, "add_offsets", lambda model, matched: None)
    with pytest.raises(VerificationError, match="'grids' failed: weight .* has other offsets than its grid"):
        tfopt.export(model, tmp_path / "m.tflite", quantization=offset)
    assert not (tmp_path / "m.tflite").exists()


@pytest.mark.parametrize("settings", [{"weight_bits": 4, "weight_granularity": 32, "weight_symmetric": False},
                                      {"weight_bits": 2}], ids=["offsets", "two bits"])  # fmt: skip
def test_offsets_and_two_bits_are_trained(keras, tmp_path, settings):
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential([layers.Input((64,)), layers.Dense(48, "relu"), layers.Dense(40)])
    x = np.random.default_rng(0).standard_normal((128, 64)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int32)
    tfopt.quantize_aware(model, **settings)
    model.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, epochs=40, verbose=0)
    model = tfopt.finish(model)
    artifact = tfopt.export(model, tmp_path / "m.tflite", quantization="trained")
    (found,) = tfopt.Predictor.load(artifact.path).predict(x).values()
    assert (found.argmax(-1) == y).mean() > 0.9
    assert np.corrcoef(found.ravel(), np.asarray(model(x)).ravel())[0, 1] > 0.999
    assert {layer.bits for layer in artifact.layers} == {settings["weight_bits"]}
