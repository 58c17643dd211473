"""Models of somebody's own classes in other sizes: by their configuration, so that class and preprocessor stay."""

import logging

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfopt
from tfopt.compress.shrink import ShrinkConfig, StructuredPruning
from tfopt.errors import InputError
from tfopt.structure.groups import structure_of
from tfopt.structure.inlined import inlined

hub = pytest.importorskip("keras_hub", reason="pip install 'tfopt[kerashub]'")
SIZES = {"vocabulary_size": 40, "num_heads": 4, "hidden_dim": 16, "intermediate_dim": 24, "max_sequence_length": 32}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "bad", "film"]


def random_weights(model):
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(rng.normal(1.0 if "norm" in weight.path else 0.0, 0.2, weight.shape))
    return model


def classifier(layers=4):
    tokenizer = hub.models.BertTokenizer(vocabulary=WORDS)
    preprocessor = hub.models.BertTextClassifierPreprocessor(tokenizer, sequence_length=16)
    backbone = hub.models.BertBackbone(num_layers=layers, **SIZES)
    return random_weights(hub.models.BertTextClassifier(backbone, num_classes=3, preprocessor=preprocessor))


def tokens(segments=True):
    ids = np.random.default_rng(1).integers(1, 40, (4, 16)).astype(np.int32)
    ids[1, 9:] = 0
    found = {"token_ids": ids, "padding_mask": (ids > 0).astype(np.int32)}
    return {**found, "segment_ids": np.zeros_like(ids)} if segments else found


def answers(model, given):
    return np.asarray(model({name: tf.constant(value) for name, value in given.items()}, training=False))


def test_layers_of_a_task_go_and_class_preprocessor_and_answers_to_texts_stay(tmp_path):
    model = classifier()
    smaller = tfopt.shrink(model, layers=[1, 2])
    assert type(smaller) is type(model) and smaller.preprocessor is model.preprocessor
    assert smaller.backbone.num_layers == 2
    # The same by hand, with KerasHub alone.
    by_hand = classifier(layers=2)
    kept = [f"transformer_layer_{number}" for number in (1, 2)]
    source = [w for w in model.weights if not any(name in w.path for name in kept)]
    for weight, value in zip(by_hand.weights, source, strict=True):
        weight.assign(value)
    np.testing.assert_allclose(answers(smaller, tokens()), answers(by_hand, tokens()), atol=1e-6)
    smaller.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    texts = ["a good film", "a bad film"]
    np.testing.assert_allclose(again.predict(texts, verbose=0), smaller.predict(texts, verbose=0), atol=1e-6)


def test_neurons_by_the_configuration_and_by_layer_where_it_has_one_number_for_all():
    model = classifier()
    smaller = tfopt.shrink(model, neurons=0.5)  # the answers are compared with those of a masked model
    assert type(smaller) is type(model) and smaller.backbone.intermediate_dim == 12
    assert smaller.backbone.hidden_dim == 16  # of the layer that pools as well, whose neurons stay therefore
    (first, *_) = (g.name for g in structure_of(model).groups if "intermediate" in g.name)
    by_layer = tfopt.shrink(model, neurons={first: 0.5})
    assert type(by_layer) is not type(model) and by_layer.count_params() < model.count_params()


def test_heads_go_with_the_width_that_they_make_up():
    model = classifier()
    for others in ({}, {"neurons": 0.5}):  # which could go alone: the heads that were asked for are not dropped
        with pytest.raises(InputError, match="BertTextClassifier cannot be made .* same share of heads and width"):
            tfopt.shrink(model, heads=0.5, **others)
    pruning = StructuredPruning(ShrinkConfig(heads=0.5))
    pruning.set_model(model)
    with pytest.raises(InputError, match="same share of heads and width"):
        pruning.on_train_begin()  # not after the training
    smaller = tfopt.shrink(model, heads=0.5, width=0.5, neurons=0.5)
    assert type(smaller) is type(model)
    assert (smaller.backbone.num_heads, smaller.backbone.hidden_dim) == (2, 8)
    with pytest.raises(InputError, match="of class TransformerEncoder, of whose arguments none changes it alone"):
        tfopt.shrink(model.backbone, heads=0.5)  # its outputs have the width, which stays


def test_heads_go_alone_where_the_class_has_a_number_for_their_size():
    sizes = {
        "vocabulary_size": 40, "num_layers": 2, "num_query_heads": 4, "num_key_value_heads": 2, "hidden_dim": 16,
        "intermediate_dim": 24, "head_dim": 8,
    }  # fmt: skip
    model = random_weights(hub.models.GemmaBackbone(**sizes))
    smaller = tfopt.shrink(model, heads=0.5)
    assert type(smaller) is type(model)
    assert (smaller.num_query_heads, smaller.num_key_value_heads, smaller.head_dim) == (2, 1, 8)


def test_a_causal_model_stays_one_that_generates(tmp_path):
    backbone = hub.models.GPT2Backbone(num_layers=2, **SIZES)
    model = random_weights(hub.models.GPT2CausalLM(backbone=backbone, preprocessor=None))
    smaller = tfopt.shrink(tfopt.shrink(model, layers=1), heads=0.5, width=0.5)
    assert type(smaller) is type(model)
    tfopt.export(smaller, tmp_path / "m.tflite", lengths=(16,), representative=tokens(segments=False))
    config = tfopt.GenerateConfig(max_tokens=4, stop_tokens=())
    found = [
        tfopt.Generator.load(source, **how).generate([3, 4, 5], config)[0].tokens
        for source, how in ((tmp_path / "m.tflite", {}), (smaller, {"runtime": "eager"}))
    ]
    assert found[0] == found[1]


def test_layers_inside_a_layer_and_of_an_encoder_and_a_decoder():
    sizes = {"image_shape": (16, 16, 3), "patch_size": 8, "num_heads": 4, "hidden_dim": 16, "mlp_dim": 24}
    vision = random_weights(hub.models.ViTBackbone(num_layers=3, **sizes))
    smaller = tfopt.shrink(vision, layers=1)
    assert type(smaller) is type(vision) and smaller.num_layers == 2
    both = random_weights(hub.models.BartBackbone(num_layers=2, **SIZES))
    smaller = tfopt.shrink(both, layers=1)
    assert type(smaller) is type(both) and smaller.num_layers == 1


def test_a_student_learns_hidden_states_inside_the_backbone_of_a_task():
    teacher = classifier()
    student = tfopt.shrink(teacher, layers=2)
    distiller = tfopt.Distiller(student, teacher, hidden=1.0)
    assert distiller.layers == {0: 1, 1: 3}
    distiller.compile(keras.optimizers.Adam(1e-3))
    lessons = distiller.teach(tf.data.Dataset.from_tensor_slices(tokens()).batch(2))
    seen = distiller.model.fit(lessons, epochs=3, verbose=0).history
    assert seen["hidden_1_loss"][-1] < seen["hidden_1_loss"][0]
    made = tfopt.finish(distiller.model)
    assert type(made) is type(teacher) and made is student


def test_a_family_that_the_decoder_does_not_know_is_exported_as_it_is_and_said(tmp_path, caplog):
    sizes = {"num_heads": 4, "hidden_dim": 16, "intermediate_dim": 24, "max_sequence_length": 16}
    backbone = hub.models.OPTBackbone(vocabulary_size=40, num_layers=1, **sizes)
    model = random_weights(hub.models.OPTCausalLM(backbone=backbone, preprocessor=None))
    with caplog.at_level(logging.WARNING):
        tfopt.export(model, tmp_path / "m.tflite", lengths=(16,), representative=tokens(segments=False))
    assert "does not generate: the decoder does not know its family" in caplog.text
    (found,) = tfopt.Predictor.load(tmp_path / "m.tflite").predict(tokens(segments=False)).values()
    np.testing.assert_allclose(found, answers(model, tokens(segments=False)), atol=1e-3)


def test_layers_that_differ_by_their_number_keep_what_they_are():
    sizes = {
        "num_query_heads": 2,
        "num_key_value_heads": 1,
        "hidden_dim": 16,
        "intermediate_dim": 24,
        "head_dim": 8,
    }
    windows = {"use_sliding_window_attention": True, "sliding_window_size": 4}
    model = random_weights(hub.models.GemmaBackbone(vocabulary_size=40, num_layers=4, **sizes, **windows))
    smaller = tfopt.shrink(model, layers=[0])  # by the class, windows would move to the layers that see all tokens
    assert type(smaller) is not type(model)
    seen = [
        layer.attention.use_sliding_window_attention for layer in smaller.layers if "decoder_block" in layer.name
    ]
    assert seen == [layer.attention.use_sliding_window_attention for layer in model.transformer_layers[1:]]


def test_layers_that_hand_on_more_than_one_tensor_are_refused():
    sizes = {"vocabulary_size": 40, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 8, "key_value_dim": 4}
    with pytest.raises(InputError, match="hand on more than one tensor"):
        tfopt.shrink(random_weights(hub.models.T5Backbone(num_layers=3, **sizes)), layers=[1])


def test_a_model_inside_that_is_called_by_names_gets_its_own_inputs():
    layers = keras.layers
    keras.utils.set_random_seed(0)
    ids, mask = (layers.Input((6,), dtype="int32", name=name) for name in ("token_ids", "padding_mask"))
    x = layers.Embedding(20, 8)(ids) * keras.ops.cast(mask, "float32")[:, :, None]
    inner = keras.Model([ids, mask], layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4)(x, x)))
    given = {
        "token_ids": layers.Input((6,), dtype="int32", name="a"),
        "padding_mask": layers.Input((6,), dtype="int32", name="b"),
    }
    model = keras.Model(list(given.values()), layers.Dense(3)(inner(given)[:, 0]))
    values = [np.arange(6, 12)[None].astype(np.int32), np.array([[1, 1, 1, 1, 0, 0]], np.int32)]
    np.testing.assert_allclose(inlined(model)(values), model(values), atol=1e-6)
