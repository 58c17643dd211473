"""Structure: what belongs together is found and cut, and what is cut was nothing but zeros."""

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

import tfopt
from tfopt._keras import extras, keras_api
from tfopt._keras.keras_io import call, inputs_of
from tfopt._keras.loading import load_model
from tfopt.compress import shrink as technique
from tfopt.errors import InputError
from tfopt.schedules import PolynomialDecay
from tfopt.structure.axes import axis, fix, leaves, regroup, size_of, unify
from tfopt.structure.blocks import blocks_of
from tfopt.structure.cut import Kept, cut
from tfopt.structure.groups import structure_of
from tfopt.structure.importance import importance

from .structured_models import SHARES, attention, convolutions, encoder, gpt2, llama, nested

MODELS = list(SHARES)


def randomized(model, seed=0):
    """The model with random weights everywhere: biases, gammas and moving averages too."""
    rng = np.random.default_rng(seed)
    for weight in keras_api.weights(model):
        if weight.name.startswith("moving_") and extras.of(model):
            continue  # the scale of an RMS norm, which has no statistics
        shape = tuple(weight.variable.shape)
        low = 0.5 if weight.name in ("moving_variance", "gamma") else -0.5
        weight.variable.assign(rng.uniform(low, low + 1, shape).astype(np.float32))
    return model


def samples(model, rows=4, length=6, seed=0):
    rng = np.random.default_rng(seed)
    inputs = inputs_of(model)
    found = {
        name: rng.integers(0, 50, spec.shape) if spec.dtype.is_integer else rng.standard_normal(spec.shape)
        for name, spec in inputs.with_sizes(rows, length).items()
    }
    if "attention_mask" in found:
        found["attention_mask"] = np.ones_like(found["attention_mask"])
        found["attention_mask"][0, 4:] = 0
    return {name: value.astype(inputs.specs[name].dtype.as_numpy_dtype) for name, value in found.items()}


def outputs(model, named):
    return next(iter(call(model, inputs_of(model), named).values())).numpy()


def parameters(model):
    return sum(int(np.prod(w.variable.shape)) for w in keras_api.weights(model))


def zeroed(model, structure, kept):
    """Sets everything of the units that are not kept to zero, with loops that share nothing with the product."""
    for group in structure.groups:
        if group.name not in kept:
            continue
        for place in group.slices:
            variable = next(w.variable for w in keras_api.weights(model) if w.path == place.path)
            if "moving_" in place.path:
                continue
            value = keras_api.to_numpy(variable).copy()
            for index in range(value.shape[place.axis]):
                unit = index // place.inner % group.units
                if unit not in kept[group.name]:
                    value[(slice(None),) * place.axis + (index,)] = 0
            variable.assign(value)


@pytest.mark.parametrize("make", MODELS, ids=lambda m: m.__name__)
def test_the_smaller_model_computes_what_the_masked_one_does(make, keras, tmp_path):
    model = randomized(make(keras))
    before = {w.path: keras_api.to_numpy(w.variable).copy() for w in keras_api.weights(model)}
    smaller = tfopt.shrink(model, **SHARES[make])
    assert parameters(smaller) < 0.85 * parameters(model)
    assert all((before[w.path] == keras_api.to_numpy(w.variable)).all() for w in keras_api.weights(model))
    modules = {type(layer).__module__.partition(".")[0] for _, layer in keras_api.walk(smaller)}
    assert modules == {keras.__name__}
    structure = structure_of(model)
    scores = importance(model, structure)
    kept = {
        g.name: set(np.argsort(scores[g.name], kind="stable")[min(g.units - 1, round(share * g.units)) :].tolist())
        for g in structure.groups
        if (share := SHARES[make].get(g.kind))
    }
    named = samples(model)
    found = outputs(smaller, named)
    zeroed(model, structure, kept)
    expected = outputs(model, named)
    np.testing.assert_allclose(found, expected, atol=1e-5 * max(1, np.abs(expected).max()))
    keras_api.save_model(smaller, tmp_path / "m.keras")
    again = load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(outputs(again, named), found, atol=1e-6 * max(1, np.abs(found).max()))
    lengths = [6] if make is encoder else [8, 24] if make in (llama, gpt2) else None
    artifact = tfopt.export(smaller, tmp_path / "m.tflite", format="tflite", lengths=lengths)
    assert artifact.max_abs_error < 1e-3 * max(1, np.abs(found).max())


def test_groups_are_what_a_reader_would_say(keras):
    def kinds(model):
        found = structure_of(model).groups
        return {
            kind: [g.units for g in found if g.kind == kind] for kind in ("heads", "neurons", "channels", "width")
        }

    assert kinds(encoder(keras)) == {"heads": [4] * 4, "neurons": [64] * 4, "channels": [], "width": [32]}
    assert kinds(llama(keras)) == {"heads": [2] * 3, "neurons": [48] * 3, "channels": [], "width": [32]}
    assert kinds(attention(keras)) == {"heads": [4] * 3, "neurons": [64] * 3, "channels": [], "width": [32]}
    assert kinds(convolutions(keras)) == {"heads": [], "neurons": [20], "channels": [8, 12], "width": []}
    assert kinds(nested(keras))["neurons"] == [24]  # called twice, cut once; the other axis is the input's


def test_layers_go_and_generating_models_still_generate(keras, generation):
    for make in (encoder, gpt2, llama, attention):
        model = randomized(make(keras))
        count = len(blocks_of(model, structure_of(model)))
        assert count == (4 if make is encoder else 3)
        smaller = tfopt.shrink(model, layers=[0, 2])
        assert len(blocks_of(smaller, structure_of(smaller))) == count - 2
        assert parameters(smaller) < parameters(model)
    model = llama(keras)
    smaller = tfopt.shrink(model, heads=0.5, neurons=0.5, layers=1)
    config = tfopt.Generator.load(smaller, runtime="eager").decoder.config
    shape = (
        config.num_hidden_layers,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.intermediate_size,
    )
    assert shape == (2, 2, 1, 24)
    ids = np.random.default_rng(0).integers(0, 60, (1, 12)).astype(np.int32)
    recomputed = outputs(smaller, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    with tfopt.Generator.load(smaller, runtime="eager").decoder.open([0]) as session:
        np.testing.assert_allclose(session.extend(ids, every=True), recomputed, atol=1e-4)


def test_removed_layers_are_those_that_were_named(keras):
    model = randomized(encoder(keras))
    smaller = tfopt.shrink(model, layers=[1])
    values = {w.path: keras_api.to_numpy(w.variable) for w in keras_api.weights(model)}
    for weight in keras_api.weights(smaller):
        number = {"layer_1": "layer_2", "layer_2": "layer_3"}
        old = next((weight.path.replace(a, b) for a, b in number.items() if weight.path.startswith(a)), weight.path)
        np.testing.assert_array_equal(keras_api.to_numpy(weight.variable), values[old], err_msg=weight.path)
    spread = tfopt.shrink(model, layers=2)
    first = {w.path: keras_api.to_numpy(w.variable) for w in keras_api.weights(spread)}
    np.testing.assert_array_equal(first["layer_1_output/kernel"], values["layer_3_output/kernel"])


def test_first_order_importance_is_the_gradient_of_a_gate(keras):
    """The unit whose output the loss depends on most is found, though its weights are the smallest."""
    model = randomized(encoder(keras))
    structure = structure_of(model)
    group = next(g for g in structure.groups if g.kind == "neurons")
    down = next(w for w in keras_api.weights(model) if w.path == "layer_0_output/kernel")
    value = keras_api.to_numpy(down.variable).copy()
    value[7] *= 1e-9  # no output depends on this one
    down.variable.assign(value)
    named, labels = samples(model), np.array([0, 1, 2, 0])
    data = [(named, labels)]
    scores = importance(model, structure, data)[group.name]
    assert scores.argmin() == 7
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    step, base = 1e-3, float(loss(labels, outputs(model, named)))
    for unit in (3, 20):
        changed = value.copy()
        changed[unit] *= 1 + step
        down.variable.assign(changed)
        gate = (float(loss(labels, outputs(model, named))) - base) / step
        assert abs(gate) == pytest.approx(scores[unit], rel=0.1, abs=2e-3)
    down.variable.assign(value)
    assert tfopt.shrink(model, neurons=1 / 64, data=data).count_params() < model.count_params()


def test_units_go_while_it_trains_and_are_cut_at_the_end(keras, strategy):
    from tfopt.train.strategy import scope

    with scope(strategy):
        model = randomized(encoder(keras))
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    named, labels = samples(model, rows=16), np.arange(16) % 3
    schedule = PolynomialDecay(0.0, 0.9, 0, end_step=4, frequency=1)
    config = technique.ShrinkConfig(heads=0.5, neurons=0.25, schedule=schedule)
    prepared, callbacks = technique.prepare(model, config)
    history = prepared.fit(named, labels, batch_size=4, epochs=2, callbacks=callbacks, verbose=0)
    assert history.history["units_cut"][-1] == pytest.approx((4 * 2 + 4 * 16) / (4 * 4 + 4 * 64))
    expected = outputs(prepared, named)
    smaller = technique.finish(prepared)
    groups = structure_of(smaller).groups
    assert {g.units for g in groups if g.kind == "heads"} == {2}
    assert {g.units for g in groups if g.kind == "neurons"} == {48}
    np.testing.assert_allclose(outputs(smaller, named), expected, atol=1e-4)


def test_units_go_from_the_start_of_fit_and_units_that_stay_are_said(keras, caplog):
    model = randomized(encoder(keras))
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    named, labels = samples(model, rows=16), np.arange(16) % 3
    model.fit(named, labels, batch_size=4, epochs=2, verbose=0)  # eight steps that are none of the schedule's
    for end, said in ((4, False), (40, True)):
        config = technique.ShrinkConfig(
            neurons=0.25, schedule=PolynomialDecay(0.0, 0.9, 0, end_step=end, frequency=1)
        )
        model.fit(named, labels, batch_size=4, callbacks=technique.prepare(model, config).callbacks, verbose=0)
        assert ("before all units were taken out" in caplog.text) == said


@pytest.mark.parametrize("make", [encoder, llama, gpt2, attention])
def test_hidden_width_goes_with_the_statistics_of_norms(keras, make, tmp_path):
    """That outputs are those with norms over the rest is checked inside; a norm over zeros would be another."""
    model = randomized(make(keras))
    smaller = tfopt.shrink(model, width=0.25, heads=0.5)
    before, after = ({w.path: tuple(w.variable.shape) for w in keras_api.weights(one)} for one in (model, smaller))
    assert before.keys() == after.keys()
    width = [g.units for g in structure_of(smaller).groups if g.kind == "width"]
    assert width == [24] and not any(32 in shape for shape in after.values() if len(shape) == 1)
    assert parameters(smaller) < 0.82 * parameters(model)
    keras_api.save_model(smaller, tmp_path / "m.keras")
    named = samples(model)
    np.testing.assert_allclose(outputs(load_model(tmp_path / "m.keras"), named), outputs(smaller, named), atol=1e-6)


def test_the_units_of_the_width_that_matter_least_go(keras):
    """Units that nothing writes to or reads from can go and no output changes but by the norms' statistics."""
    model = randomized(encoder(keras))
    group = next(g for g in structure_of(model).groups if g.kind == "width")
    zeroed(model, structure_of(model), {group.name: set(range(24))})
    smaller = tfopt.shrink(model, width=0.25)
    table = next(w for w in keras_api.weights(smaller) if w.path == "word_embeddings/embeddings")
    old = next(w for w in keras_api.weights(model) if w.path == "word_embeddings/embeddings")
    np.testing.assert_array_equal(keras_api.to_numpy(table.variable), keras_api.to_numpy(old.variable)[:, :24])


def test_width_goes_neither_gradually_nor_under_other_statistics(keras):
    with pytest.raises(InputError, match="width cannot go while a model trains"):
        technique.prepare(encoder(keras), technique.ShrinkConfig(width=0.5))
    layers = keras.layers
    inputs = layers.Input((8,))
    x = layers.Dense(16)(inputs)
    largest = layers.GlobalMaxPooling1D()(layers.Reshape((16, 1))(x))
    outputs = layers.Add()([layers.Dense(3)(x), layers.Dense(3)(largest)])
    with pytest.raises(InputError, match="computes Max over the hidden width, which means something else"):
        tfopt.shrink(keras.Model(inputs, outputs), width=0.5)
    norm = keras.Model(inputs, layers.Dense(3)(layers.UnitNormalization()(x)))
    assert parameters(tfopt.shrink(norm, width=0.5)) < 0.6 * parameters(norm)  # sums do not notice zeros


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "nothing to take out"), ({"heads": 1.0}, r"heads must be in \[0, 1\), the share to take out, got 1.0"),
        ({"channels": 0.5}, "the model has no channels that can be taken out"),
        ({"layers": 4}, r"layers must be in \[0, 3\] of 4, got 4"), ({"layers": [4]}, "layers must name some of 0 to 3"),
        ({"heads": 0.5, "exclude": "*attention*"}, "include and exclude leave none of 4 groups"),
        ({"heads": 0.5, "include": "nothing"}, "include pattern 'nothing' matches no layer"),
        ({"heads": 0.5, "data": []}, "data for importance holds no batches"),
    ],
)  # fmt: skip
def test_bad_arguments(keras, arguments, says):
    with pytest.raises(InputError, match=says):
        tfopt.shrink(encoder(keras), **arguments)


def test_what_cannot_be_cut(keras):
    model = randomized(encoder(keras))
    structure = structure_of(model)
    name = next(g.name for g in structure.groups if g.kind == "heads")
    with pytest.raises(InputError, match=r"units of .* must ascend in \[0, 4\), one or more, got \[1, 9\]"):
        cut(model, structure, Kept({name: np.array([1, 9])}))
    with pytest.raises(InputError, match=r"must ascend in \[0, 4\), one or more, got \[\]"):
        cut(model, structure, Kept({name: np.array([], int)}))
    with pytest.raises(InputError, match="the model has no units 'x'"):
        cut(model, structure, Kept({"x": np.array([0])}))
    with pytest.raises(InputError, match="has no units of zeros"):
        technique.finish(model)
    zeroed(model, structure, {name: set()})
    with pytest.raises(InputError, match="all 4 heads of .* are zero; one has to stay"):
        technique.finish(model)
    neurons = next(g for g in structure.groups if g.kind == "neurons")
    zeroed(model, structure, {neurons.name: set(range(1, neurons.units))})
    smaller = technique.finish(model, exclude=name.rpartition("/")[2])  # those heads are not asked about
    shapes = {w.path: tuple(w.variable.shape) for w in keras_api.weights(smaller)}
    assert shapes[f"{neurons.name}/kernel"][1] == neurons.units - 1 and shapes[f"{name}/kernel"][1] == 32
    with pytest.raises(InputError, match="has no units of zeros"):
        technique.finish(model, exclude=[name, neurons.name])

    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(3)

        def call(self, x):
            return self.dense(x)

    unknown = Subclassed()
    unknown(np.ones((1, 4), np.float32))
    with pytest.raises(InputError, match="is no functional model, so its graph is not known"):
        tfopt.shrink(unknown, neurons=0.5)


def test_units_are_compared_when_layers_go_too(keras, monkeypatch):
    compared = []
    monkeypatch.setattr(technique, "compare", lambda *given, **named: compared.append(1))
    tfopt.shrink(randomized(encoder(keras)), layers=1, neurons=0.5)
    assert compared


def test_cut_encoders_go_back_to_public_folders_where_they_fit(keras, tmp_path):
    model = randomized(tfopt.models.bert(encoder_shape(), generation=keras.__name__))
    smaller = tfopt.shrink(model, neurons=0.5, layers=[1])
    tfopt.models.save_pretrained(smaller, tmp_path / "m")
    again = tfopt.models.from_pretrained(tmp_path / "m", keras.__name__)
    named = samples(model)
    np.testing.assert_allclose(outputs(again, named), outputs(smaller, named), atol=1e-5)
    with pytest.raises(InputError, match="since its heads no longer make up its width|its heads no longer make up"):
        tfopt.models.save_pretrained(tfopt.shrink(model, heads=0.5), tmp_path / "n")
    with pytest.raises(InputError, match="heads that make up the width"):
        tfopt.models.save_pretrained(tfopt.shrink(gpt2(keras), heads=0.5), tmp_path / "g")


def encoder_shape():
    return tfopt.models.BertConfig(
        60, 32, 3, num_attention_heads=4, intermediate_size=64, max_position_embeddings=24, hidden_dropout_prob=0.0
    )


def test_several_groups_on_one_axis_and_in_one_layer(keras):
    layers = keras.layers
    inputs = layers.Input((8, 6))
    x = layers.Permute((2, 1))(layers.Dense(12)(inputs))
    x = layers.Dense(5)(layers.Dense(10, activation="relu")(x))
    model = randomized(keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x))))
    assert parameters(tfopt.shrink(model, neurons=0.5)) < 0.7 * parameters(model)
    inputs = layers.Input((5, 8))
    x = layers.EinsumDense("abc,cde->abde", (5, 4, 6))(inputs)
    model = randomized(keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x))))
    assert parameters(tfopt.shrink(model, neurons=0.5)) < 0.5 * parameters(model)


def test_layers_with_sizes_of_their_own_stay_whole(keras):
    layers = keras.layers
    inputs = layers.Input((6, 6, 4))
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same")(inputs)
    x = layers.Conv2D(8, 1)(x)
    x = layers.GroupNormalization(2)(x)
    x = layers.TimeDistributed(layers.Dense(12))(x)
    y = layers.Dense(5)(layers.Dense(16, activation="relu")(layers.GlobalAveragePooling2D()(x)))
    model = randomized(keras.Model(inputs, y))
    assert [(g.kind, g.units) for g in structure_of(model).groups] == [("neurons", 16)]
    assert parameters(tfopt.shrink(model, neurons=0.5)) < parameters(model)
    constant = (
        np.full(12, 2.0, np.float32) if keras.__name__ == "keras" else tf.constant(np.full(12, 2.0, np.float32))
    )
    inputs = layers.Input((4,))
    scaled = keras.Model(inputs, layers.Dense(2)(layers.Dense(12)(inputs) * constant))
    with pytest.raises(InputError, match="no neurons that can be taken out .*a constant has its size"):
        tfopt.shrink(scaled, neurons=0.5)


def test_free_sizes_that_convolutions_need(keras):
    layers = keras.layers
    inputs = layers.Input((None, None, 3))
    x = inputs
    for width in (4, 6, 8, 8):
        x = layers.MaxPooling2D()(layers.Conv2D(width, 3, activation="relu")(x))
    model = randomized(keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x))))
    assert parameters(tfopt.shrink(model, channels=0.5)) < 0.5 * parameters(model)


def test_a_schedule_goes_on_in_the_next_fit_whatever_the_new_optimizer_counts(keras):
    model = randomized(encoder(keras))
    named, labels = samples(model, rows=16), np.arange(16) % 3
    callback = technique.StructuredPruning(
        technique.ShrinkConfig(neurons=0.5, schedule=PolynomialDecay(0.0, 0.9, 0, end_step=20, frequency=1))
    )
    found = []
    for _ in range(2):
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        history = model.fit(named, labels, batch_size=4, epochs=1, callbacks=[callback], verbose=0)
        found.append(history.history["units_cut"][-1])
    assert 0.2 < found[0] < 0.4 < found[1]
    with pytest.raises(
        InputError, match=r"heads=0.1 takes none of 4 heads; the smallest share that takes one is 0.25"
    ):
        technique.prepare(model, technique.ShrinkConfig(heads=0.1))
    with pytest.raises(InputError, match="nothing to take out"):
        technique.prepare(model, technique.ShrinkConfig())
    with pytest.raises(InputError, match="layers of a model that generates must stay alike"):
        technique.prepare(llama(keras), technique.ShrinkConfig(neurons=0.5, include="layer_0_*"))


def test_what_no_rule_understands_keeps_its_size(keras):
    layers = keras.layers
    inputs = layers.Input((8, 6))
    x = layers.Dense(16)(inputs)
    x = layers.LSTM(12, return_sequences=True)(x)
    y = layers.Dense(16)(layers.Dense(20, activation="relu")(x))
    model = keras.Model(inputs, layers.Dense(2)(layers.Concatenate()([y, x])))
    groups = structure_of(model).groups
    assert [(g.kind, g.units) for g in groups] == [("neurons", 20)]
    assert tfopt.shrink(model, neurons=0.5).output_shape == (None, 8, 2)


def test_grouped_sizes_of_a_generating_model_must_stay_alike(keras):
    with pytest.raises(InputError, match="layers of a model that generates must stay alike, _up/kernel"):
        tfopt.shrink(llama(keras), neurons=0.5, include="layer_0_*")


@hypothesis.given(
    sizes=st.lists(st.sampled_from([2, 3, 4, 6]), min_size=1, max_size=4), cuts=st.data()
)  # fmt: skip
def test_reshapes_keep_the_order_of_factors(sizes, cuts):
    total = int(np.prod(sizes))
    divisors = [d for d in range(1, total + 1) if total % d == 0]
    first = cuts.draw(st.sampled_from(divisors))
    before = [axis(n) for n in sizes]
    after = regroup(before, [first, total // first])
    if after is None:
        return
    assert [size_of(a) for a in after] == [first, total // first] or first in (1, total)
    assert leaves(*after) == leaves(*before)  # both see the same factors, split where it was needed


def test_axes_become_one_and_reasons_travel():
    whole, heads, size = axis(12), axis(3), axis(4)
    unify(whole, (*heads, *size))
    assert leaves(whole) == leaves(heads, size)
    other = axis(12)
    unify(other, whole)
    fix("because", heads)
    assert [leaf.fixed for leaf in leaves(other)] == ["because", None]
    odd = axis(5), axis(7)
    unify((*odd[0], *odd[1]), (*axis(7), *axis(5)))
    assert all(leaf.fixed for leaf in leaves(*odd))


def test_a_trace_reads_every_weight(keras):
    model = encoder(keras)
    structure = structure_of(model)
    assert set(structure.trace.variables.values()) == {w.path for w in keras_api.weights(model)}
    assert all(isinstance(op, tf.Operation) for op in structure.trace.operations)


def test_units_between_models_inside_a_model_go(keras):
    """Of an autoencoder: what the encoder makes is an axis of the decoder's input."""
    layers = keras.layers
    keras.utils.set_random_seed(0)
    encoder = keras.Sequential([layers.Input((10,)), layers.Dense(12)], name="encoder")
    decoder = keras.Sequential([layers.Input((12,)), layers.Dense(20, "relu"), layers.Dense(10)], name="decoder")
    inputs = layers.Input((10,), name="x")
    model = keras.Model(inputs, decoder(encoder(inputs)))
    smaller = tfopt.shrink(model, neurons=0.5)  # the answers are compared with those of a masked model
    assert smaller.get_layer("decoder").input_shape[-1] == 6
    assert smaller.count_params() < 0.55 * model.count_params()
