"""The last layer computes one token: what that changes, what it does not, and where it cannot be."""

import math

import numpy as np
import pytest
import tensorflow as tf

import tfopt
from tfopt._keras import keras_api
from tfopt._keras.keras_io import call, inputs_of
from tfopt.errors import InputError
from tfopt.models.encoder import encoder_config
from tfopt.models.symbolic_ops import SymbolicOps
from tfopt.structure.nodes import nodes

from .structured_models import attention, convolutions, llama
from .test_distill import lessons
from .test_shrink import outputs, randomized, samples

SMALL = tfopt.models.BertConfig(60, 32, 3, num_attention_heads=4, intermediate_size=48, max_position_embeddings=24)


def classifier(keras, pooling):
    return tfopt.models.bert(SMALL, 3, pooling=pooling, generation=keras.__name__)


def before_norm(keras, pick):
    """Norms before the blocks and one at the end, attention of one's own or Keras's, a known or an unknown length."""
    ops = SymbolicOps(keras.__name__)
    layers, length = keras.layers, 9 if pick == "known length" else None
    inputs = layers.Input((length, 16))
    x = layers.Dense(24)(inputs)
    for _ in range(2):
        h = layers.LayerNormalization()(x)
        if pick == "known length":
            heads = [layers.Permute((2, 1, 3))(layers.Reshape((length, 4, 6))(layers.Dense(24)(h))) for _ in "qkv"]
            scores = layers.Softmax()(ops.matmul(heads[0], layers.Permute((1, 3, 2))(heads[1])))
            h = ops.matmul(scores, heads[2])
            h = layers.Dense(24)(layers.Reshape((length, 24))(layers.Permute((2, 1, 3))(h)))
        else:
            h = layers.MultiHeadAttention(4, 6)(query=h, value=h)
        x = layers.Add()([x, h])
        h = layers.Dense(24)(layers.Dense(40, "relu")(layers.LayerNormalization()(x)))
        x = layers.Add()([x, h])
    x = layers.LayerNormalization()(x)
    return keras.Model(inputs, layers.Dense(3)(x[:, 0] if pick != "last" else x[:, -1]))


def lengths(model, layer):
    """How many tokens each call of a layer computes, in the graph that the model's outputs need."""
    called = [node for node in nodes(model) if node.operation is not None and node.operation.name == layer]
    return [node.symbolic[0].shape[1] for node in called]


@pytest.mark.parametrize("pooling", ["cls", "pooler"])
def test_nothing_changes_where_the_first_token_is_taken(pooling, keras, tmp_path):
    model = randomized(classifier(keras, pooling))
    smaller = tfopt.shrink(model, pool_early=True)
    given = samples(model)
    np.testing.assert_allclose(outputs(smaller, given), outputs(model, given), atol=1e-5)
    assert lengths(smaller, "layer_2_attention_query") == lengths(smaller, "layer_2_intermediate") == [1]
    assert lengths(smaller, "layer_2_attention_key") == lengths(smaller, "layer_1_intermediate") == [None]
    keras_api.save_model(smaller, tmp_path / "m.keras")
    np.testing.assert_array_equal(outputs(tfopt.models.load(tmp_path / "m.keras"), given), outputs(smaller, given))
    tfopt.export(
        smaller,
        tmp_path / "m.tflite",
        format="tflite",
        quantization="dynamic_int8",
        lengths=[6],
        representative=given,
    )
    found = tfopt.Predictor.load(tmp_path / "m.tflite").predict(given)
    assert (
        np.abs(next(iter(found.values())) - outputs(model, given)).max() < 0.1 * np.abs(outputs(model, given)).max()
    )


@pytest.mark.parametrize("pick", ["first", "last", "known length"])
def test_models_of_other_layers_keep_their_outputs(pick, keras):
    model = randomized(before_norm(keras, pick))
    smaller = tfopt.shrink(model, pool_early=True)
    given = samples(model)
    np.testing.assert_allclose(outputs(smaller, given), outputs(model, given), atol=1e-5, rtol=1e-5)
    neurons = [layer.name for _, layer in keras_api.walk(model) if getattr(layer, "units", None) == 40]
    assert [lengths(smaller, name) for name in neurons] == [[inputs_of(model).specs.popitem()[1].shape[1]], [1]]


def test_a_mean_is_taken_of_what_the_last_layer_takes(keras):
    """Against the last layer written out in NumPy."""
    model = randomized(classifier(keras, "mean"))
    smaller, given = tfopt.shrink(model, pool_early=True), samples(model)
    weights = {w.path: keras_api.to_numpy(w.variable).astype(np.float64) for w in keras_api.weights(model)}
    stream = keras.Model(model.input, model.get_layer("layer_1_output_norm").output)
    x = next(iter(call(stream, inputs_of(stream), given).values())).numpy().astype(np.float64)
    mask = given["attention_mask"].astype(np.float64)[:, :, None]

    def dense(value, name):
        return value @ weights[f"layer_2_{name}/kernel"] + weights[f"layer_2_{name}/bias"]

    def norm(value, name):
        value = (value - value.mean(-1, keepdims=True)) / np.sqrt(value.var(-1, keepdims=True) + 1e-12)
        return value * weights[f"layer_2_{name}/gamma"] + weights[f"layer_2_{name}/beta"]

    def heads(value):
        return value.reshape(len(value), -1, 4, 8).transpose(0, 2, 1, 3)

    token = (x * mask).sum(1, keepdims=True) / mask.sum(1, keepdims=True)
    scores = (
        heads(dense(token, "attention_query")) @ heads(dense(x, "attention_key")).transpose(0, 1, 3, 2) / 8**0.5
    )
    scores = np.exp(scores - scores.max(-1, keepdims=True)) * mask.transpose(0, 2, 1)[:, None]
    context = scores / scores.sum(-1, keepdims=True) @ heads(dense(x, "attention_value"))
    token = norm(
        token + dense(context.transpose(0, 2, 1, 3).reshape(len(x), 1, 32), "attention_output"), "attention_norm"
    )
    hidden = dense(token, "intermediate")
    hidden = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / 2**0.5))
    token = norm(token + dense(hidden, "output"), "output_norm")[:, 0]
    expected = token @ weights["logits/kernel"] + weights["logits/bias"]
    np.testing.assert_allclose(outputs(smaller, given), expected, atol=1e-4, rtol=1e-4)
    assert np.abs(outputs(model, given) - expected).max() > 1e-3


def test_it_goes_with_layers_heads_neurons_and_distillation(keras):
    teacher = classifier(keras, "mean")
    student = tfopt.shrink(teacher, layers=[1], pool_early=True, heads=0.5, neurons={"layer_0_intermediate": 0.25})
    shapes = {w.path: tuple(w.variable.shape) for w in keras_api.weights(student)}
    assert shapes["layer_1_attention_key/kernel"] == (32, 16) and shapes["layer_0_intermediate/kernel"] == (32, 36)
    assert shapes["layer_1_intermediate/kernel"] == (32, 48)
    distiller = tfopt.Distiller(student, teacher, hidden=1.0)
    assert distiller.layers == {0: 1}  # of layers 0 and 2 of three, the second of which pools early
    distiller.compile("adam")
    history = distiller.model.fit(distiller.teach(lessons()), epochs=12, verbose=0).history["loss"]
    assert history[-1] < history[0]
    with pytest.raises(InputError, match=r"layers must map \[0, 1\)"):  # the last one has no state of every token
        tfopt.Distiller(student, teacher, hidden=1.0, layers={1: 2})
    with pytest.raises(InputError, match="its last layer computes one token"):
        encoder_config(tfopt.shrink(teacher, pool_early=True))


def summed(keras):
    """A sum of tokens, which grows with their number."""
    inner = attention(keras)
    x = inner.layers[-3].output
    return keras.Model(inner.input, keras.layers.Dense(3)(SymbolicOps(keras.__name__).sum(x, axis=1)))


def biased(keras):
    """Scores get something that is different for every pair of tokens."""
    layers, ops = keras.layers, SymbolicOps(keras.__name__)
    inputs, far = layers.Input((9, 16)), layers.Input((9, 9))
    x = layers.Dense(16)(inputs)
    for _ in range(2):
        scores = ops.matmul(layers.Dense(16)(x), layers.Permute((2, 1))(layers.Dense(16)(x)))
        x = layers.LayerNormalization()(x + ops.matmul(layers.Softmax()(scores + far), layers.Dense(16)(x)))
    return keras.Model([inputs, far], layers.Dense(3)(x[:, 0]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (llama, "does not pool the tokens of its last layer to one vector of 32 values"),
        (lambda keras: tfopt.models.bert(SMALL, generation=keras.__name__), "does not pool"),
        (lambda keras: tfopt.models.bert(SMALL, 3, generation=keras.__name__, head="tokens"), "does not pool"),
        (summed, "by picking one or by a mean or maximum"),
        (convolutions, "no layers of attention between tensors of one shape"),
        (biased, "gives a token alone something else than among the others"),
    ],
    ids=["generates", "encoder", "tokens", "sum", "convolutions", "pairs"],
)
def test_models_that_cannot_are_told_why(make, message, keras):
    with pytest.raises(InputError, match=message):
        tfopt.shrink(make(keras), pool_early=True)


def test_keras_attention_with_an_average(keras):
    """Against the last layer's own layers, called by hand."""
    model = randomized(attention(keras))
    smaller, given = tfopt.shrink(model, pool_early=True), samples(model)
    # The last layer: attention, sum, norm, two dense layers, sum, norm; then the average and the classifier.
    attend, _, first, up, down, _, second, _, classify = model.layers[-9:]
    stream = keras.Model(model.input, model.layers[-10].output)
    x = next(iter(call(stream, inputs_of(stream), given).values()))
    token = tf.reduce_mean(x, 1, keepdims=True)
    token = first(token + attend(token, x))
    expected = classify(second(token + down(up(token)))[:, 0])
    np.testing.assert_allclose(outputs(smaller, given), np.asarray(expected), atol=1e-4, rtol=1e-4)
    assert np.abs(outputs(model, given) - expected).max() > 1e-3
    assert outputs(tfopt.shrink(model, pool_early=True, heads=0.5), given).shape == expected.shape


def blocks(keras, x, mask=None, **settings):
    layers = keras.layers
    for _ in range(2):
        h = layers.MultiHeadAttention(2, 8)(x, x, attention_mask=mask, **settings)
        x = layers.LayerNormalization()(layers.Add()([x, h]))
        h = layers.Dense(16)(layers.EinsumDense("abc,cd->abd", (10, 32), activation="relu")(x))
        x = layers.LayerNormalization()(layers.Add()([x, h]))
    return x


def test_attention_to_what_came_before_is_exact_for_the_first_token_alone(keras):
    inputs = keras.layers.Input((10, 16))
    x = blocks(keras, keras.layers.Dense(16)(inputs), use_causal_mask=True)
    first, last, mean = (
        randomized(keras.Model(inputs, keras.layers.Dense(3)(pooled)))
        for pooled in (x[:, 0], x[:, -1], keras.layers.GlobalAveragePooling1D()(x))
    )
    given = samples(first)
    np.testing.assert_allclose(
        outputs(tfopt.shrink(first, pool_early=True), given), outputs(first, given), atol=1e-5
    )
    for model in (last, mean):
        with pytest.raises(InputError, match="'multi_head_attention.*' gives a token alone something else"):
            tfopt.shrink(model, pool_early=True)


def test_names_stay_free_and_outputs_keep_theirs(keras, tmp_path):
    layers = keras.layers
    inputs = layers.Input((10, 16), name="x")
    x = layers.Dense(16, name="pooled_token")(inputs)
    ops = SymbolicOps(keras.__name__)
    for _ in range(2):
        heads = [layers.Dense(16)(x) for _ in "qk"]
        scores = ops.matmul(layers.Reshape((10, 16))(heads[0]), layers.Permute((2, 1))(heads[1]))
        x = layers.LayerNormalization()(x + ops.matmul(layers.Softmax()(scores), x))
    model = randomized(keras.Model({"tokens": inputs}, layers.GlobalAveragePooling1D(name="pooled")(x)))
    keras_api.save_model(model, tmp_path / "m.keras")
    keras.backend.clear_session()  # names are counted anew, as in another process
    model = tfopt.models.load(tmp_path / "m.keras")
    smaller = tfopt.shrink(model, pool_early=True)
    assert smaller.output_names == model.output_names == ["pooled"]
    assert outputs(smaller, samples(model)).shape == (4, 16)


@pytest.mark.parametrize("carries_a_mask", [False, True])
def test_inputs_of_every_kind(carries_a_mask, keras):
    """A number for each row, a mask of floats, embeddings that carry a mask."""
    layers, ops = keras.layers, SymbolicOps(keras.__name__)
    ids, weight, scale = (
        layers.Input((None,), dtype="int32", name="ids"),
        layers.Input((None,), name="weight"),
        layers.Input((), dtype="int32", name="scale"),
    )
    x = layers.Embedding(50, 16, mask_zero=carries_a_mask)(ids)
    for _ in range(2):
        h = layers.LayerNormalization()(x)
        x = layers.Add()([x, layers.MultiHeadAttention(2, 8)(h, h)])
        x = layers.Add()([x, layers.Dense(16)(layers.Dense(32, "relu")(layers.LayerNormalization()(x)))])
    few = ops.maximum(ops.sum(weight, axis=1), 1e-9)[:, None]
    mean = ops.sum(x * weight[:, :, None], axis=1) / few
    scaled = ops.cast(scale, "float32")[:, None]
    made = keras.Model([ids, weight, scale], layers.Dense(3)(x[:, 0] if carries_a_mask else mean) * scaled)
    model, given = randomized(made), samples(made)
    given |= {"ids": np.maximum(given["ids"], 1), "weight": np.eye(6, dtype=np.float32)[[0, 2, 3, 5]]}
    given["ids"][0, 4:] = 0  # padding; and a mean over one token picks it
    smaller = tfopt.shrink(model, pool_early=True)
    np.testing.assert_allclose(outputs(smaller, given), outputs(model, given), atol=1e-4, rtol=1e-5)
    assert np.abs(outputs(model, given)).max() > 0.1
