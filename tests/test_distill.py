"""Distillation: losses against plain NumPy, what is learned, what is kept on disk, what does not fit together."""

import numpy as np
import pytest
import tensorflow as tf

import tfopt
from tfopt._keras import extras, keras_api
from tfopt.compress import prune
from tfopt.errors import DataError, InputError
from tfopt.numerics import distillation as losses
from tfopt.schedules import ConstantSparsity
from tfopt.structure.features import features_of
from tfopt.train import make_strategy
from tfopt.train.strategy import scope

from .structured_models import attention, encoder, llama


def lessons(classes=3, rows=32, length=8, labels_at_tokens=False):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 60, (rows, length)).astype(np.int32)
    mask = np.ones_like(ids)
    mask[: rows // 4, 5:] = 0
    labels = rng.integers(0, classes, (rows, length) if labels_at_tokens else (rows,))
    return tf.data.Dataset.from_tensor_slices(({"input_ids": ids, "attention_mask": mask}, labels)).batch(8)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_losses_are_their_formulas():
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 5, 7)), rng.standard_normal((2, 5, 7))
    p, q = softmax(a / 3), softmax(b / 3)
    each = 9 * (p * np.log(p / q)).sum(-1)
    np.testing.assert_allclose(losses.soft_cross_entropy(3.0)(a[:, 0], b[:, 0]), each[:, 0], rtol=1e-4)
    a[0, 3:] = 0  # padding of the first row
    expected = [each[0, :3].mean(), each[1].mean()]
    np.testing.assert_allclose(losses.soft_cross_entropy(3.0)(a, b), expected, rtol=1e-4)
    np.testing.assert_allclose(
        losses.hidden_error(a, b), [((a - b) ** 2)[0, :3].mean(), ((a - b) ** 2)[1].mean()], rtol=1e-5
    )
    maps, others = softmax(rng.standard_normal((2, 2, 5, 5))), softmax(rng.standard_normal((2, 2, 5, 5)))
    maps[0, :, 3:] = 0
    each = np.where(maps > 0, maps * np.log(np.maximum(maps, 1e-30) / others), 0).sum(-1)
    np.testing.assert_allclose(losses.divergence(maps, others), [each[0, :, :3].mean(), each[1].mean()], rtol=1e-4)
    values, smaller = rng.standard_normal((2, 2, 5, 4)), rng.standard_normal((2, 2, 5, 3))
    values[0, :, 3:] = 0

    def relation(v):
        return softmax(v @ v.T / np.sqrt(v.shape[-1]))

    def difference(v, w):
        r, s = relation(v), relation(w)
        return (r * np.log(r / s)).sum(-1).mean()

    expected = [np.mean([difference(values[0, h, :3], smaller[0, h, :3]) for h in range(2)]),
                np.mean([difference(values[1, h], smaller[1, h]) for h in range(2)])]  # fmt: skip
    np.testing.assert_allclose(losses.relation_divergence(values, smaller), expected, rtol=1e-3)


@pytest.mark.parametrize(("make", "replicas"), [(encoder, 2), (llama, 1)], ids=["encoder, 2 replicas", "causal"])
def test_a_student_comes_to_answer_like_its_teacher(make, keras, replicas):
    causal, strategy = make is llama, make_strategy(replicas)
    with scope(strategy):
        teacher = make(keras)
        for weight in keras_api.weights(teacher):  # answers that differ from text to text
            if weight.name in ("kernel", "embeddings"):
                weight.variable.assign(keras_api.to_numpy(weight.variable) * 6)
        student = tfopt.shrink(teacher, layers=1, neurons=0.5)
        distiller = tfopt.Distiller(
            student, teacher, hidden=0.1, attention=0.1, embeddings=0.1, relations=0.1, labels=0.1, temperature=2.0
        )
        distiller.compile(keras.optimizers.Adam(2e-3))
    data = lessons(60 if causal else 3, labels_at_tokens=causal)
    before = [keras_api.to_numpy(w.variable).copy() for w in keras_api.weights(teacher)]
    history = distiller.model.fit(distiller.teach(data), epochs=8, verbose=0).history
    assert history["loss"][-1] < 0.9 * history["loss"][0]
    after = [keras_api.to_numpy(w.variable) for w in keras_api.weights(teacher)]
    assert all((a == b).all() for a, b in zip(before, after, strict=True)), "the teacher stays as it was"
    finished = distiller.finish()
    assert finished is student and finished.output_shape == teacher.output_shape


def test_widths_that_differ_get_a_projection_that_does_not_stay(keras):
    layers = keras.layers

    def make(width):
        inputs = layers.Input((6, 8))
        x = layers.Dense(width)(inputs)
        for _ in range(2):
            x = layers.LayerNormalization()(layers.Add()([x, layers.MultiHeadAttention(2, 8)(x, x)]))
        return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)), name=f"m{width}")

    teacher, student = make(16), make(12)
    distiller = tfopt.Distiller(student, teacher, hidden=1.0, embeddings=1.0)
    names = {layer.name for _, layer in keras_api.walk(distiller.model)}
    assert {"hidden_0_projection", "hidden_1_projection", "embeddings_projection"} <= names
    assert set(distiller.projections) == {name for name in names if name.endswith("_projection")}
    prepared = prune.prepare(
        distiller.model,
        prune.PruneConfig(ConstantSparsity(0.5, 0, frequency=1), exclude=distiller.projections),
    )
    assert set(distiller.projections) <= {skipped.path.partition("/")[0] for skipped in prepared.skipped}
    distiller.compile(keras.optimizers.Adam(1e-3))
    data = tf.data.Dataset.from_tensor_slices(np.ones((8, 6, 8), np.float32)).batch(4)
    distiller.model.fit(distiller.teach(data), verbose=0)
    finished = distiller.finish()
    assert not any("projection" in layer.name for _, layer in keras_api.walk(finished))
    with pytest.raises(InputError, match="happens inside layers and cannot be seen; distill hidden states"):
        tfopt.Distiller(student, teacher, attention=1.0)


def test_every_output_of_several_is_learned(keras):
    from tfopt.models import BertConfig, bert

    keras.utils.set_random_seed(5)
    teacher = bert(
        BertConfig(60, 32, 2, num_attention_heads=2, intermediate_size=64, max_position_embeddings=24),
        head="span",
        generation=keras.__name__,
    )
    for weight in keras_api.weights(teacher):
        if weight.name == "kernel":
            weight.variable.assign(keras_api.to_numpy(weight.variable) * 6)
    distiller = tfopt.Distiller(tfopt.shrink(teacher, layers=1), teacher, hidden=1.0)
    distiller.compile(keras.optimizers.Adam(2e-3))
    data = lessons().map(lambda x, *labels: ({**x, "token_type_ids": tf.zeros_like(x["input_ids"])}, *labels))
    inputs = next(iter(data))[0]

    def apart():
        wanted, found = teacher(inputs), distiller.student(inputs)
        return {
            name: float(losses.soft_cross_entropy(1.0)(wanted[name], found[name]).numpy().mean()) for name in wanted
        }

    before = apart()
    distiller.model.fit(distiller.teach(data), epochs=8, verbose=0)
    after = apart()
    assert after.keys() == {"start_logits", "end_logits"} and all(after[n] < 0.9 * before[n] for n in after)
    assert set(distiller.finish()(inputs)) == after.keys()


def test_the_teacher_runs_once_where_its_answers_are_kept(keras, tmp_path):
    teacher = encoder(keras)
    distiller = tfopt.Distiller(tfopt.shrink(teacher, layers=1), teacher, hidden=1.0, labels=1.0)
    asked = []

    def counted(inputs, labels):
        tf.py_function(lambda: asked.append(1), [], [])
        return inputs, labels

    data = lessons().map(counted)
    kept = distiller.teach(data, tmp_path / "cache")
    first = sorted(float(y["logits"].numpy().sum()) for _, y in kept)
    again = sorted(float(y["logits"].numpy().sum()) for _, y in distiller.teach(data, tmp_path / "cache"))
    assert len(asked) == 4 and first == again and len(first) == 4 and int(kept.cardinality()) == 4
    plain = sorted(float(y["logits"].numpy().sum()) for _, y in distiller.teach(lessons()))
    np.testing.assert_allclose(first, plain, rtol=1e-5)
    inputs, targets = next(iter(kept))
    row = int(np.argmin(inputs["attention_mask"].numpy().sum(1)))
    tail = targets["hidden_0"].numpy()[row, int(inputs["attention_mask"].numpy()[row].sum()) :]
    assert not tail.any(), "padding teaches nothing"
    student = tfopt.shrink(teacher, layers=1)
    mapped = tfopt.Distiller(student, teacher, hidden=1.0, labels=1.0, layers={0: 3, 1: 0, 2: 1})
    with pytest.raises(DataError, match="or other features"):
        mapped.teach(data, tmp_path / "cache")
    fewer_heads = tfopt.Distiller(tfopt.shrink(teacher, layers=1, heads=0.5), teacher, hidden=1.0, labels=1.0)
    assert distiller.asked == fewer_heads.asked != mapped.asked
    other = tfopt.Distiller(tfopt.shrink(teacher, layers=1), encoder(keras), hidden=1.0, labels=1.0)
    with pytest.raises(DataError, match="holds what another teacher made"):
        other.teach(data, tmp_path / "cache")
    records = tmp_path / "cache" / "batches.tfrecord"
    records.write_bytes(records.read_bytes()[:-1])
    with pytest.raises(DataError, match="is missing or damaged; remove"):
        distiller.teach(data, tmp_path / "cache")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no batches of a teacher"):
        distiller.teach(data, tmp_path / "empty")
    with pytest.raises(DataError, match="the dataset is empty"):
        distiller.teach(data.take(0), tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with pytest.raises(InputError, match="a dataset without an end cannot be kept"):
        distiller.teach(data.repeat(), tmp_path / "endless")


def test_padding_teaches_nothing_under_any_name(keras):
    """Hidden states at padding differ between two batches; what is learned from them does not."""
    k, mean = keras.layers, []

    def make(width):
        text, real = k.Input((12,), dtype="int32", name="tokens"), k.Input((12,), name="is_text")
        x = k.Embedding(60, width)(text)
        for _ in range(2):
            see = k.Reshape((1, -1))(real)
            x = k.LayerNormalization()(k.Add()([x, k.MultiHeadAttention(2, 8)(x, x, attention_mask=see)]))
            x = k.LayerNormalization()(k.Add()([x, k.Dense(width)(k.Dense(2 * width, "relu")(x))]))
        return keras.Model({"tokens": text, "is_text": real}, k.Dense(3)(k.Dot(axes=1)([x, real])))

    teacher, student = make(16), make(16)
    distiller = tfopt.Distiller(student, teacher, hidden=1.0)
    distiller.compile(keras.optimizers.Adam(0.0))
    ids = np.random.default_rng(0).integers(1, 60, (8, 12)).astype(np.int32)
    real = (np.arange(12)[None] < np.arange(4, 12)[:, None]).astype(np.float32)
    for filler in (0, 7):
        given = {"tokens": np.where(real > 0, ids, filler).astype(np.int32), "is_text": real}
        data = tf.data.Dataset.from_tensor_slices(given).batch(8)
        history = distiller.model.fit(distiller.teach(data), epochs=1, verbose=0).history
        mean.append(history["loss"][0])
    assert mean[0] > 0.01
    np.testing.assert_allclose(mean[0], mean[1], rtol=1e-5)


def test_layers_are_mapped_as_told(keras):
    teacher = encoder(keras)
    student = tfopt.shrink(teacher, layers=2)
    found = tfopt.Distiller(student, teacher, logits=0.0, hidden=1.0, layers={0: 1, 1: 3})
    inputs = next(iter(lessons()))[0]
    taught = found._taught(inputs, training=False)
    whole = keras.Model(teacher.inputs, list(features_of(teacher).hidden))(
        [inputs[t.name.partition(":")[0]] for t in teacher.inputs]
    )
    np.testing.assert_allclose(taught["hidden_0"], whole[1], atol=1e-5)
    np.testing.assert_allclose(taught["hidden_1"], whole[3], atol=1e-5)
    with pytest.raises(InputError, match=r"layers must map \[0, 2\) to \[0, 4\).* got 2: 0"):
        tfopt.Distiller(student, teacher, hidden=1.0, layers={2: 0})
    with pytest.raises(InputError, match="layers must map one layer or more"):
        tfopt.Distiller(student, teacher, hidden=1.0, layers={})


def test_a_student_of_one_layer_and_one_deeper_than_its_teacher(keras):
    teacher = encoder(keras)
    single = tfopt.shrink(teacher, layers=3)
    assert tfopt.Distiller(single, teacher, hidden=1.0).layers == {0: 3}
    assert tfopt.Distiller(teacher, single, hidden=1.0).layers == dict.fromkeys(range(4), 0)
    for make in (llama, attention):
        model = make(keras)
        assert len(features_of(tfopt.shrink(model, layers=2)).hidden) == 1


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"logits": 0.0}, "nothing to learn: one of logits, labels"), ({"hidden": -1.0}, "hidden must be 0 or more"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
    ],
)  # fmt: skip
def test_bad_settings(settings, says, keras):
    model = encoder(keras)
    with pytest.raises(InputError, match=says):
        tfopt.Distiller(model, model, **settings)


def test_what_does_not_fit_together(keras, generation):
    from tfopt.models import BertConfig, bert

    teacher = encoder(keras)
    config = BertConfig(60, 32, 2, num_attention_heads=2, intermediate_size=64, max_position_embeddings=24)
    with pytest.raises(InputError, match=r"outputs and classes, got logits \(None, 5\) and logits \(None, 3\)"):
        tfopt.Distiller(bert(config, 5, generation=generation), teacher)
    with pytest.raises(
        InputError, match="attention needs as many heads in both, got 2 in the student and 4 in the"
    ):
        tfopt.Distiller(bert(config, 3, generation=generation), teacher, attention=1.0)
    span = bert(config, head="span", generation=generation)
    with pytest.raises(
        InputError, match=r"got logits_end_logits \(None, None\), logits_start_logits .* and logits "
    ):
        tfopt.Distiller(span, teacher)
    with pytest.raises(InputError, match="must take the same inputs"):
        inputs = keras.layers.Input((4,))
        tfopt.Distiller(keras.Model(inputs, keras.layers.Dense(3)(inputs)), teacher)
    inputs = keras.layers.Input((4,))
    single = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    with pytest.raises(InputError, match="logits of model .* has one value, from which no classes"):
        tfopt.Distiller(single, single, outputs={"logits": "logits"})
    with pytest.raises(InputError, match="outputs must map logits to one of logits, probabilities, .*'answer'"):
        tfopt.Distiller(single, single, outputs={"answer": "values"})
    other = "keras" if generation == "tf_keras" else "tf_keras"
    with pytest.raises(InputError, match="of one Keras generation"):
        tfopt.Distiller(bert(config, 3, generation=other), teacher)

    first, second = llama(keras), llama(keras)
    extras.keep(first, extras.TOKENIZERS[0], b"{}")
    extras.keep(second, extras.TOKENIZERS[0], b"{ }")
    with pytest.raises(InputError, match="different tokenizers, so the same ids mean different texts"):
        tfopt.Distiller(first, second)
    plain = attention(keras)
    inputs = keras.layers.Input((4,))
    each = keras.Model(inputs, keras.layers.Dense(3, activation="sigmoid")(inputs))
    some = keras.Model(inputs, keras.layers.Dense(3)(inputs))
    with pytest.raises(InputError, match="logits holds independent in the teacher and logits in the student"):
        tfopt.Distiller(some, each)
    with pytest.raises(InputError, match=r"data must give inputs or \(inputs, labels\), got 3 parts"):
        x = np.ones((4, 10, 16), np.float32)
        weighted = tf.data.Dataset.from_tensor_slices((x, np.zeros(4), np.ones(4))).batch(2)
        tfopt.Distiller(plain, plain).teach(weighted)
    labelled = tfopt.Distiller(plain, plain, labels=1.0)
    with pytest.raises(InputError, match="labels count, but the data has none"):
        labelled.teach(tf.data.Dataset.from_tensor_slices(np.ones((4, 10, 16), np.float32)).batch(2))


def answers(keras, width=8, seed=0):
    """Outputs of every kind from two inputs."""
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    a, b = layers.Input((6,), name="a"), layers.Input((4,), name="b")
    x = layers.Dense(width, activation="tanh")(layers.Concatenate()([a, b]))
    return keras.Model([a, b], {
        "topic": layers.Dense(3, activation="softmax", name="topic")(x),
        "tags": layers.Dense(4, activation="sigmoid", name="tags")(x),
        "price": layers.Dense(1, name="price")(x),
        "next": layers.Dense(5, name="next")(x),
    })  # fmt: skip


@pytest.mark.parametrize("labels", [0.0, 0.5])
def test_outputs_of_every_kind_are_learned(keras, labels):
    teacher, student = answers(keras, 32), answers(keras, 16, seed=1)
    rng = np.random.default_rng(0)
    inputs = tuple(rng.standard_normal((256, n)).astype(np.float32) for n in (6, 4))
    wanted = {name: np.asarray(value) for name, value in teacher(list(inputs)).items()}
    told = {
        "topic": wanted["topic"].argmax(1), "tags": wanted["tags"] > 0.5, "price": wanted["price"],
        "next": wanted["next"].argmax(1),
    }  # fmt: skip
    distiller = tfopt.Distiller(student, teacher, labels=labels, temperature=2.0)
    distiller.compile(keras.optimizers.Adam(0.02))
    data = tf.data.Dataset.from_tensor_slices((inputs, told) if labels else inputs).batch(32)
    before = {name: np.asarray(value) for name, value in student(list(inputs)).items()}
    distiller.model.fit(distiller.teach(data), epochs=30, verbose=0)
    after = {name: np.asarray(value) for name, value in distiller.finish()(list(inputs)).items()}
    for name, value in wanted.items():
        if name == "next":  # logits are the same for classes when all of them move together
            value, *others = (x - x.mean(1, keepdims=True) for x in (value, before[name], after[name]))
        else:
            others = [before[name], after[name]]
        errors = [np.square(other - value).mean() for other in others]
        assert errors[1] < (0.5 if labels else 0.25) * errors[0], name


def test_probabilities_teach_logits(keras):
    """Log-probabilities are logits: a student before its softmax learns from a teacher behind it."""
    keras.utils.set_random_seed(0)
    inputs = keras.layers.Input((4,))
    plain = keras.Model(inputs, keras.layers.Dense(3)(inputs))
    teacher = keras.Model(inputs, keras.layers.Softmax()(plain(inputs)))
    student = keras.models.clone_model(plain)
    student.set_weights(plain.get_weights())
    distiller = tfopt.Distiller(student, teacher)
    distiller.compile("sgd")
    x = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    loss = distiller.model.evaluate(distiller.teach(tf.data.Dataset.from_tensor_slices(x).batch(4)), verbose=0)
    assert loss == pytest.approx(0, abs=1e-5)


def test_labels_of_other_outputs_are_refused(keras):
    model = answers(keras)
    distiller = tfopt.Distiller(answers(keras, seed=1), model, labels=1.0)
    x = (np.ones((2, 6), np.float32), np.ones((2, 4), np.float32))
    with pytest.raises(InputError, match="labels must be given for next, price, tags, topic, got topic"):
        distiller.teach(tf.data.Dataset.from_tensor_slices((x, {"topic": [0, 1]})).batch(2))
