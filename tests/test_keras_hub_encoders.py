"""KerasHub's encoders and classifiers of texts as models of this library: the same answers, from the same texts."""

import json

import numpy as np
import pytest
import tensorflow as tf

import tfopt
from tfopt._base.members import FACTS, TOKENIZER
from tfopt._keras import extras
from tfopt.data.tokenizers import parse_tokenizer
from tfopt.errors import InputError, ModelFileError
from tfopt.models.keras_hub_encoders import FAMILIES, as_encoder
from tfopt.models.source import load_any
from tfopt.search.original import Corpus, recipe_of

hub = pytest.importorskip("keras_hub", reason="pip install 'tfopt[kerashub]'")
SIZES = {
    "vocabulary_size": 60, "num_layers": 2, "num_heads": 4, "hidden_dim": 16, "intermediate_dim": 24,
    "max_sequence_length": 32,
}  # fmt: skip
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "good",
    "bad",
    "film",
    "##ing",
    "the",
    ".",
    ",",
    "-",
    "!",
]


def preprocessor(family):
    if family == "Roberta":
        letters = sorted(set("abcdefghijklmnopqrstuvwxyz .,!-") - {" "} | {"\u0120"})
        words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *letters, "go", "od", "good"]
        vocabulary = {word: number for number, word in enumerate(words)}
        tokenizer = hub.models.RobertaTokenizer(vocabulary=vocabulary, merges=["g o", "o d", "go od"])
    else:
        tokenizer = getattr(hub.models, f"{family}Tokenizer")(vocabulary=WORDS, lowercase=True)
    return getattr(hub.models, f"{family}TextClassifierPreprocessor")(tokenizer, sequence_length=12)


def classifier(family, **settings):
    backbone = getattr(hub.models, f"{family}Backbone")(**SIZES)
    kind = getattr(hub.models, f"{family}TextClassifier")
    model = kind(backbone, num_classes=3, preprocessor=preprocessor(family), **settings)
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(rng.normal(1.0 if weight.path.endswith("gamma") else 0.0, 0.3, weight.shape))
    return model


def tokens(model):
    ids = np.random.default_rng(1).integers(3, 15, (4, 12)).astype(np.int32)
    mask = np.ones_like(ids)
    mask[1, 7:] = 0
    theirs = {"token_ids": ids, "padding_mask": mask, "segment_ids": np.zeros_like(ids)}
    return {name: theirs[name] for name in model.input}, {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("generation", ["tf_keras", "keras"])
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_keras_hub(family, generation):
    model = classifier(family)
    made = as_encoder(model, generation=generation)
    theirs, ours = ({n: tf.constant(v) for n, v in given.items()} for given in tokens(model))
    np.testing.assert_allclose(np.asarray(made(ours)), np.asarray(model(theirs, training=False)), atol=2e-5)
    hidden = model.backbone(theirs, training=False)
    hidden = hidden["sequence_output"] if isinstance(hidden, dict) else hidden
    found = as_encoder(model.backbone)(ours)["last_hidden_state"]
    np.testing.assert_allclose(np.asarray(found)[0], np.asarray(hidden)[0], atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_get_the_same_tokens(family):
    model = classifier(family)
    made = as_encoder(model)
    tokenizer = parse_tokenizer(extras.of(made)[TOKENIZER].decode(), family)
    for text in ("a good film.", "the bad-film, gooding!", "unknown words"):
        theirs = model.preprocessor(text)
        found = tokenizer.encode(text).ids
        ids = np.asarray(theirs["token_ids"])[np.asarray(theirs["padding_mask"]).astype(bool)].tolist()
        assert ids == (found if len(found) <= 12 else [*found[:11], found[-1]])
    assert json.loads(extras.of(made)[FACTS])["labels"] == {"label": ["0", "1", "2"]}


def test_a_head_that_is_not_known_is_refused():
    with pytest.raises(InputError, match="activation 'softmax' is not known"):
        as_encoder(classifier("Bert", activation="softmax"))
    with pytest.raises(InputError, match="a head of 5 neurons"):
        as_encoder(classifier("Roberta", hidden_dim=5))
    other = hub.models.AlbertBackbone(**{**SIZES, "embedding_dim": 8})
    assert as_encoder(other) is other


def test_a_saved_one_answers_texts_as_keras_hub_does(tmp_path):
    model = classifier("Bert")
    texts = ["a good film", "the bad film!"]
    expected = model.predict(texts, verbose=0)
    tfopt.export(as_encoder(model), tmp_path / "m.tflite", lengths=(12,))
    answer = tfopt.Predictor.load(tmp_path / "m.tflite").predict(texts)
    assert list(answer["label"]) == [str(i) for i in expected.argmax(1)]


def rows(tmp_path):
    lines = [
        f"{text}\t{label}"
        for text, label in (("a good film", 0), ("the bad film", 1), ("film", 2))
        for _ in "12345"
    ]
    path = tmp_path / "train.tsv"
    path.write_text("\n".join(["sentence\tlabel", *lines]) + "\n", "utf-8")
    return Corpus(path)


def test_folders_of_keras_hub_are_optimized_and_loaded(tmp_path):
    model = classifier("Bert")
    model.save_to_preset(tmp_path / "preset")
    recipe = recipe_of(tmp_path / "preset", rows(tmp_path), tmp_path, tokenizer=None, max_length=None, epochs=1)
    assert (recipe.model.kind, recipe.train.epochs, recipe.data.max_length) == ("keras", 0, 12)
    theirs, ours = tokens(model)
    np.testing.assert_allclose(
        np.asarray(load_any(recipe.model.file)(ours)), np.asarray(model(theirs, training=False)), atol=2e-5
    )
    assert type(load_any(tmp_path / "preset")) is type(model)
    config = json.loads((tmp_path / "preset" / "task.json").read_text("utf-8"))
    config["config"]["preprocessor"] = {"class_name": "run", "module": "os", "config": {}}
    (tmp_path / "preset" / "task.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(ModelFileError, match="run of the module os"):
        load_any(tmp_path / "preset")
    tokenizer = (tmp_path / "preset" / "tokenizer.json").read_text("utf-8")
    (tmp_path / "preset" / "task.json").write_text("{}", "utf-8")
    with pytest.raises(ModelFileError, match="names no class of KerasHub"):
        load_any(tmp_path / "preset")
    other = tokenizer.replace('"vocabulary": null', '"vocabulary": "/etc/hostname"')
    (tmp_path / "preset" / "tokenizer.json").write_text(other, "utf-8")
    with pytest.raises(ModelFileError, match="the path of another file, vocabulary="):
        load_any(tmp_path / "preset")


def test_an_encoder_alone_gets_a_head(tmp_path):
    model = classifier("Bert")
    (tmp_path / "tokenizer.json").write_bytes(extras.of(as_encoder(model))[TOKENIZER])
    recipe = recipe_of(
        model.backbone, rows(tmp_path), tmp_path, tokenizer=tmp_path / "tokenizer.json", max_length=None, epochs=2
    )
    assert (recipe.model.kind, recipe.train.epochs) == ("pretrained", 2)
    again = tfopt.models.from_pretrained(recipe.model.folder)
    theirs, ours = tokens(model)
    hidden = model.backbone(theirs, training=False)["sequence_output"]
    np.testing.assert_allclose(np.asarray(again(ours)["last_hidden_state"])[0], np.asarray(hidden)[0], atol=2e-5)


def test_what_was_changed_inside_is_refused_rather_than_left_out():
    model = classifier("Bert")
    model.backbone.enable_lora(2)
    with pytest.raises(InputError, match="weights that are not known here, such as .*lora"):
        as_encoder(model)


def test_a_model_that_was_shrunk_is_optimized(tmp_path):
    model = tfopt.models.bert(tfopt.models.BertConfig(60, 16, 2, 4, 24, 32), 3)
    extras.keep(model, TOKENIZER, extras.of(as_encoder(classifier("Bert")))[TOKENIZER])
    recipe = recipe_of(
        tfopt.shrink(model, heads=0.5), rows(tmp_path), tmp_path, tokenizer=None, max_length=12, epochs=1
    )
    assert recipe.model.kind == "keras"
