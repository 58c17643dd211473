"""A model over several devices answers and learns as it does on one."""

import dataclasses
import itertools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import TINY, without_exports
from tests.decoders import FAMILIES
from tfopt._keras import keras_api
from tfopt._keras.devices import devices
from tfopt._keras.loading import load_model
from tfopt.compress import quantize
from tfopt.errors import InputError
from tfopt.models import bert, causal_lm
from tfopt.parallel.pipeline import Pipeline
from tfopt.parallel.placed import Placed
from tfopt.parallel.split import TensorParallel, split
from tfopt.parallel.stages import _balanced, idle_share, placed, stages_of
from tfopt.quantization import QuantizeConfig
from tfopt.recipe import Recipe
from tfopt.run.pipeline import build
from tfopt.structure.nodes import flat, nodes

ROWS, LENGTH = 11, 12


def inputs(names=("input_ids", "attention_mask")):
    rng = np.random.default_rng(0)
    ids = rng.integers(3, 60, (ROWS, LENGTH)).astype(np.int32)
    mask = np.ones_like(ids)
    mask[::2, 7:] = 0
    return dict(zip(names, (ids * mask, mask, 0 * ids), strict=False))


def models(generation):
    """Name -> a model of four layers, or two, without dropout."""
    shape = dataclasses.replace(TINY, num_hidden_layers=4, hidden_dropout_prob=0.0)
    keras_api.keras_module(generation).utils.set_random_seed(1)
    return {
        "two layers": bert(dataclasses.replace(shape, num_hidden_layers=2), 3, generation=generation),
        "classifier": bert(shape, 3, generation=generation),
        "words, by the table of the first stage": bert(shape, head="masked_lm", generation=generation),
        "several outputs": bert(shape, heads={"a": 2, "b": 3}, generation=generation),
        "gpt2": causal_lm(FAMILIES["gpt2"], generation=generation),
        "llama": causal_lm(FAMILIES["llama"], generation=generation),
    }


def gradients(network, model, x):
    """Answers and gradients of all variables, of a loss of every answer."""
    variables = [keras_api.tf_variable(v) for v in model.trainable_variables]

    def both(given):
        if network is not None:
            answer, pull = network(given)
            return answer, pull([2.0 * a for a in flat(answer)])
        with tf.GradientTape() as tape:
            answer = model(given, training=True)
            loss = tf.add_n([tf.reduce_sum(tf.square(a)) for a in flat(answer)])
        found = tape.gradient(loss, variables)
        return answer, [None if g is None else tf.convert_to_tensor(g) for g in found]

    return tf.function(both, autograph=False)(x)


def check_same(model, devices_, x, micro_batches):
    copied = placed(model, devices_)
    pipeline = Pipeline(copied, [devices_], micro_batches=micro_batches)
    answers, expected = gradients(None, model, x)
    again, found = gradients(pipeline, copied, x)
    for one, other, third in zip(flat(answers), flat(again), flat(pipeline.predict(x)), strict=True):
        np.testing.assert_allclose(other, one, atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(third, one, atol=1e-5, rtol=1e-5)
    assert sum(g is not None for g in expected) > 5
    for variable, one, other in zip(model.trainable_variables, expected, found, strict=True):
        assert (one is None) == (other is None), variable.name
        if one is not None:
            np.testing.assert_allclose(other, one, atol=1e-5, rtol=1e-4, err_msg=variable.name)


@pytest.mark.parametrize("micro_batches", [1, 4, 12], ids="{} micro-batches".format)
def test_gradients_are_those_of_the_model(generation, micro_batches):
    check_same(models(generation)["two layers"], devices(2, "stages"), inputs(), micro_batches)


@pytest.mark.parametrize("name", ["words, by the table of the first stage", "several outputs", "llama"])
def test_other_models(generation, name):
    check_same(models(generation)[name], devices(2, "stages"), inputs(), micro_batches=3)


def test_a_model_of_keras_hub():
    keras_hub = pytest.importorskip("keras_hub")
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=100, num_layers=2, num_heads=2, hidden_dim=16, intermediate_dim=32, max_sequence_length=16,
        dropout=0.0,
    )  # fmt: skip
    model = keras_hub.models.BertTextClassifier(backbone, num_classes=3, preprocessor=None, dropout=0.0)
    pipeline = Pipeline(model, [devices(2, "stages")], micro_batches=4)
    x = inputs(("token_ids", "padding_mask", "segment_ids"))
    _, expected = gradients(None, model, x)
    _, found = gradients(pipeline, model, x)
    for variable, one, other in zip(model.trainable_variables, expected, found, strict=True):
        np.testing.assert_allclose(other, one, atol=1e-5, rtol=1e-4, err_msg=variable.path)


def test_each_stage_is_on_its_device(generation):
    model = placed(models(generation)["classifier"], devices(2, "stages"))
    on = {w.path: keras_api.tf_variable(w.variable).device[-5:] for w in keras_api.weights(model)}
    assert on["word_embeddings/embeddings"] == on["layer_0_output/kernel"] == on["layer_1_output/kernel"] == "CPU:0"
    assert on["layer_2_attention_query/kernel"] == on["layer_3_output/kernel"] == on["logits/kernel"] == "CPU:1"
    pipeline = Pipeline(model, [devices(2, "stages")], micro_batches=2)

    def step(x):
        answer, pull = pipeline(x)
        return pull([answer])

    graph = tf.function(step, autograph=False).get_concrete_function(inputs()).graph
    products = [op.device[-5:] for op in graph.get_operations() if op.type in ("MatMul", "BatchMatMulV2")]
    assert {"CPU:0", "CPU:1"} == set(products), "none is where nobody put it"
    assert abs(products.count("CPU:0") - products.count("CPU:1")) < 0.2 * len(products)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=7), st.data())
def test_stages_are_as_even_as_they_can_be(costs, data):
    count = data.draw(st.integers(1, len(costs)))
    starts = _balanced(costs, count)

    def most(found):
        return max(sum(costs[a:b]) for a, b in itertools.pairwise([*found, len(costs)]))

    others = [(0, *rest) for rest in itertools.combinations(range(1, len(costs)), count - 1)]
    assert len(starts) == count and tuple(starts) in others
    assert most(starts) == min(map(most, others))


@given(st.integers(1, 9), st.integers(1, 30))
def test_even_stages_wait_as_gpipe_says(stages, micro_batches):
    expected = (stages - 1) / (micro_batches + stages - 1)
    assert idle_share([2.5] * stages, micro_batches) == pytest.approx(expected)
    assert idle_share([2.5] * stages + [5.0], micro_batches) > expected


def test_what_cannot_be_is_refused(generation):
    model = models(generation)["classifier"]
    with pytest.raises(InputError, match="at most the 4 layers .* got 5"):
        Pipeline(model, [["CPU:0"] * 5], micro_batches=2)
    with pytest.raises(InputError, match="micro_batches must be 1 or more, got 0"):
        Pipeline(model, [["CPU:0", "CPU:1"]], micro_batches=0)
    layers = keras_api.keras_module(generation).layers
    dense = keras_api.keras_module(generation).Sequential([layers.Input((4,)), layers.Dense(3)])
    with pytest.raises(InputError, match="at most the 0 layers"):
        stages_of(dense, 2)
    with pytest.raises(InputError, match="cannot split the CPU into 3 stages"):
        devices(3, "stages")


def meshes(generation, parts, lanes):
    """Every model that can be split, and its devices."""
    names = devices(2, "devices") * (parts * lanes)  # several may share one
    return models(generation), [names[i * parts : (i + 1) * parts] for i in range(lanes)]


@pytest.mark.parametrize(("parts", "lanes"), [(2, 1), (2, 3), (4, 1)], ids=str)
@pytest.mark.parametrize("name", ["two layers", "several outputs", "llama", "gpt2"])
def test_split_heads_and_neurons(generation, name, parts, lanes):
    made, mesh = meshes(generation, parts, lanes)
    model = made[name]
    if name != "gpt2" and parts == 4:
        with pytest.raises(InputError, match="the 2 heads of .* cannot be divided among 4 devices"):
            split(model, mesh[0])
        return
    found = split(model, mesh[0])
    network, x = TensorParallel(found, mesh), inputs()
    answers, expected = gradients(None, model, x)
    again, by_parts = gradients(network, found.model, x)
    for one, other, third in zip(flat(answers), flat(again), flat(network.predict(x)), strict=True):
        np.testing.assert_allclose(other, one, atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(third, one, atol=1e-5, rtol=1e-5)
    # Gradients take the way of weights back into the whole model.
    for variable, gradient in zip(found.model.trainable_variables, by_parts, strict=True):
        variable.assign(gradient)
    paths = {id(w.variable): w.path for w in keras_api.weights(model)}
    wanted = {paths[id(v)]: g.numpy() for v, g in zip(model.trainable_variables, expected, strict=True)}
    found.write_to(model)
    for path, value in ((w.path, keras_api.to_numpy(w.variable)) for w in keras_api.weights(model)):
        if path in wanted:
            np.testing.assert_allclose(value, wanted[path], atol=1e-5, rtol=1e-4, err_msg=path)


def test_a_model_inside_another(generation):
    keras = keras_api.keras_module(generation)
    inner = models(generation)["two layers"]
    outer = keras.Model(inner.input, keras.layers.Dense(2)(inner(inner.input)))
    found, x = split(outer, devices(2, "devices")), inputs()
    np.testing.assert_allclose(found.model(x), outer(x), atol=1e-5)
    expected = [keras_api.to_numpy(w.variable).copy() for w in keras_api.weights(outer)]
    for variable in found.model.trainable_variables:
        variable.assign(2.0 * keras_api.tf_variable(variable))
    found.write_to(outer)
    learned = {id(v) for v in outer.trainable_variables}
    for weight, value in zip(keras_api.weights(outer), expected, strict=True):
        factor = 2.0 if id(weight.variable) in learned else 1.0
        np.testing.assert_allclose(keras_api.to_numpy(weight.variable), factor * value, err_msg=weight.path)
    with pytest.raises(InputError, match="calls other models"):
        placed(outer, devices(2, "stages"))


def test_quantization_learns_in_stages(generation):
    model = models(generation)["two layers"]
    prepared = quantize.prepare(model, QuantizeConfig(activations="dynamic", warmup_steps=1))
    network = Pipeline(model, [devices(2, "stages")], micro_batches=3, enter=prepared.enter)
    for _ in range(3):
        _, found = gradients(network, model, inputs())
    assert int(keras_api.to_numpy(prepared.state[0])) == 3, "steps are counted, not micro-batches"
    assert all(np.isfinite(g).all() for g in found if g is not None)


def test_each_part_is_on_its_device(generation):
    model = models(generation)["two layers"]
    found = split(model, devices(2, "devices"))
    held = {}
    for weight in keras_api.weights(found.model):
        variable = keras_api.tf_variable(weight.variable)
        held[variable.device[-5:]] = held.get(variable.device[-5:], 0) + int(variable.shape.num_elements())
    of_layers = sum(int(np.prod(w.variable.shape)) for w in keras_api.weights(model) if "/kernel" in w.path)
    assert held["CPU:1"] > 0.45 * of_layers
    network = TensorParallel(found, [devices(2, "devices")])

    def step(x):
        answer, pull = network(x)
        return pull([answer])

    graph = tf.function(step, autograph=False).get_concrete_function(inputs()).graph
    products = [op.device[-5:] for op in graph.get_operations() if op.type in ("MatMul", "BatchMatMulV2")]
    assert set(products) == {"CPU:0", "CPU:1"} and products.count("CPU:1") > 0.4 * len(products)


def test_what_cannot_be_split_is_refused(generation):
    keras = keras_api.keras_module(generation)
    layers = keras.layers
    start = layers.Input((8, 16))
    whole = keras.Model(start, layers.Dense(3)(start + layers.MultiHeadAttention(2, 8)(start, start)))
    with pytest.raises(
        InputError, match="'multi_head_attention.*' of class MultiHeadAttention has heads or neurons"
    ):
        split(whole, ["CPU:0", "CPU:1"])
    with pytest.raises(InputError, match="needs 2 devices or more"):
        split(models(generation)["two layers"], ["CPU:0"])


def test_layers_in_a_row(generation):
    """Every other one's neurons are split; activations and biases come once."""
    keras = keras_api.keras_module(generation)
    layers = keras.layers
    x = start = layers.Input((8, 16))
    for width in (12, 8, 4):
        x = layers.Dense(width, "relu", bias_initializer="ones")(x)
    x = layers.EinsumDense("abc,cd->abd", (8, 6), bias_axes="d", bias_initializer="ones", activation="tanh")(x)
    model = keras.Model(start, layers.Dense(3, bias_initializer="ones")(layers.LayerNormalization()(x)))
    found = split(model, devices(2, "devices"))
    assert len(found.rows) >= 2 and any(part == 1 for part in found.part_of.values())
    given = np.random.default_rng(0).normal(size=(4, 8, 16)).astype(np.float32)
    np.testing.assert_allclose(found.model(given), model(given), atol=1e-5)
    expected = [keras_api.to_numpy(w.variable).copy() for w in keras_api.weights(model)]
    found.write_to(model)
    for weight, value in zip(keras_api.weights(model), expected, strict=True):
        np.testing.assert_array_equal(keras_api.to_numpy(weight.variable), value, err_msg=weight.path)


@pytest.fixture
def recipe(tiny_recipe, tmp_path):
    """A tiny recipe of two layers, with further lines for each training and at its top."""

    def make(training="", top="", variants=False):
        text = without_exports(tiny_recipe(top=top).read_text())
        text = text.replace("num_hidden_layers = 1", "num_hidden_layers = 2\ndropout = 0.0")
        text = text.replace("epochs = 4", "epochs = 1").replace("epochs = 2", "epochs = 1")
        if variants:  # pruning is enough of the techniques; all work on the layers' own calls
            text = text[: text.index('[[variants]]\nname = "four"')] + text[text.index("[measure]") :]
        else:
            text = text[: text.index("[[variants]]")] + text[text.index("[measure]") :]
        path = tmp_path / "recipe.toml"
        path.write_text(text.replace("batch_size = 16\n", f"batch_size = 16\n{training}"))
        return Recipe.load(path)

    return make


def test_a_recipe_in_stages_ends_as_on_one_device(recipe, tmp_path):
    found = {}
    ways = {"one": "", "two": "stages = 2\nmicro_batches = 2\n", "parts": "tensor_parallel = 2\n"}
    for name, stages in ways.items():
        built = build(recipe(stages), tmp_path / name, log=lambda line: None)
        found[name] = load_model(tmp_path / name / "baseline" / "model.keras")
        assert ("pipeline_idle_share" in built.curves["baseline"]) == (name == "two")
    weights = [{w.path: keras_api.to_numpy(w.variable) for w in keras_api.weights(m)} for m in found.values()]
    for path, value in weights[0].items():
        for other in weights[1:]:
            np.testing.assert_allclose(other[path], value, atol=1e-4, rtol=1e-3, err_msg=path)
    with pytest.raises(InputError, match="take the devices of one process"):
        build(recipe("stages = 2\n", top="replicas = 2"), tmp_path / "replicas")


def test_a_technique_learns_in_stages(recipe, tmp_path):
    build(recipe("stages = 2\nmicro_batches = 2\n", variants=True), tmp_path / "run", log=lambda line: None)
    pruned = load_model(tmp_path / "run" / "half" / "model.keras")
    kernels = [keras_api.to_numpy(w.variable) for w in keras_api.weights(pruned) if w.path.endswith("query/kernel")]
    assert [np.mean(kernel == 0) for kernel in kernels] == pytest.approx([0.5, 0.5], abs=0.02)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("stages = 2\naccumulate = 2", "leave out accumulate"),
        ("stages = 2\ngradient_checkpointing = true", "leave out gradient_checkpointing"),
        ("tensor_parallel = 2\njit_compile = true", "leave out jit_compile"),
        ("tensor_parallel = 2\noptimizer = 'lamb'", "divides weights, and lamb needs them whole"),
        ("tensor_parallel = 2\nclip = 'norm'", "and clip 'norm' needs them whole"),
        ("tensor_parallel = 2\nstages = 2", "one of them"), ("data_parallel = 2", "alone is replicas"),
    ],
)  # fmt: skip
def test_what_does_not_go_together(recipe, lines, says):
    with pytest.raises(InputError, match=says):
        recipe(f"{lines}\n")


@pytest.mark.parametrize(
    ("sections", "lines", "says"),
    [
        ("[variants.distill]\nhidden = 1.0", "stages = 2", "distill looks at states between layers"),
        ("[variants.distill]\nattention = 1.0", "gradient_checkpointing = true", "distill looks at states"),
        ("[variants.quantize]\nactivations = 'static'", "stages = 2", "ranges that are observed and stages"),
        ("[variants.distill]", "r_drop = 1.0", "train.r_drop is for labels"),
        ("[variants.distill]\ncache = true", "token_noise = 0.1", "answers other texts in every pass"),
    ],
)  # fmt: skip
def test_what_does_not_go_with_a_technique(sections, lines, says):
    text = f'schema = 1\nname = "x"\n[[variants]]\nname = "one"\n[variants.train]\n{lines}\n{sections}\n'
    with pytest.raises(InputError, match=says):
        Recipe.parse(text)
    assert Recipe.parse(text.replace(lines, "")).variants


def test_steps_in_embedding_space_are_for_tables_that_are_looked_up_once():
    with pytest.raises(InputError, match="adversarial is for models that look tokens up once"):
        Recipe.parse('schema = 1\nname = "x"\ntask = "causal_lm"\n[train]\nadversarial = 0.1\n')


def test_an_output_with_a_mask_is_refused(generation):
    keras = keras_api.keras_module(generation)
    start = keras.layers.Input((8,), dtype="int32")
    x = keras.layers.Embedding(60, 16, mask_zero=True)(start)
    for _ in range(2):
        x = keras.layers.Dropout(0.1)(x)
    model = keras.Model(start, x)
    network = Placed(
        model, model, groups=[[n for n in nodes(model) if n.operation is not None]], places=[0], lanes=[["CPU:0"]],
        micro_batches=2,
    )  # fmt: skip
    with pytest.raises(InputError, match="an output has a mask of Keras"):
        network.predict(np.ones((4, 8), np.int32))


def test_techniques_need_whole_layers(recipe):
    with pytest.raises(InputError, match="prune works on whole layers"):
        recipe("tensor_parallel = 2\n", variants=True)
