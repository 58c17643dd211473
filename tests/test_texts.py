"""From text to answer: tokenizer, task and labels lie in every artifact, and answers are those of the arrays."""

import json
import shutil

import numpy as np
import pytest

import tfopt
from tfopt._base.members import FACTS, PACKED, TOKENIZER
from tfopt._keras import extras, keras_api
from tfopt.data.readers.texts import read_texts
from tfopt.data.text_facts import TextFacts, packed, unpacked
from tfopt.data.tokenizers import load_tokenizer, save_tokenizer, train_bpe
from tfopt.errors import InputError, ModelFileError
from tfopt.models.source import load_any
from tfopt.report import Report


def artifacts_of(run):
    report = Report.load(run / "report.json")
    return {a.name: (run / a.path, a.quality["accuracy"]) for a in report.artifacts}


def test_every_artifact_of_a_run_answers_texts(finished_run, labelled_tsv):
    held_out = read_texts(str(labelled_tsv[1]))
    for name, (path, accuracy) in artifacts_of(finished_run).items():
        found = tfopt.Predictor.load(path).predict(held_out.texts, batch_size=32)
        assert set(found) == {"label", "probability"}, name
        right = np.mean([a == b for a, b in zip(found["label"], held_out.labels, strict=True)])
        assert right == pytest.approx(accuracy, abs=1e-9), name  # that of the packed arrays in the report
        assert ((found["probability"] > 1 / 2) & (found["probability"] <= 1)).all()


def test_the_command(finished_run, tfopt_main, tmp_path, monkeypatch):
    artifact = artifacts_of(finished_run)["baseline"][0]
    code, out, err = tfopt_main("predict", artifact, "the old plum", "a very large zinc thing")
    assert code == 0, err
    first, second = (line.split("\t") for line in out.splitlines())
    assert (first[0], first[2], second[0]) == ("fruit", "the old plum", "metal") and first[1].endswith("%")
    (tmp_path / "texts.txt").write_text("small fig\n\nnew lead\n")
    code, out, _ = tfopt_main("predict", artifact, "--file", tmp_path / "texts.txt", "--json")
    answers = json.loads(out)["answers"]
    assert [a["label"] for a in answers] == ["fruit", "metal"] and answers[0]["text"] == "small fig"
    (tmp_path / "empty.txt").write_text("\n")
    code, _, err = tfopt_main("predict", artifact, "--file", tmp_path / "empty.txt")
    assert code == 2 and "holds no text" in err
    code, _, err = tfopt_main("predict", artifact, " ".join(["plum"] * 200))
    assert code == 2 and "--truncate" in err
    assert tfopt_main("predict", artifact, " ".join(["plum"] * 200), "--truncate")[1].startswith("fruit")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    save_tokenizer(train_bpe(["a plain text about nothing much", "another one"], 300), path)
    return path


def somebodys(keras, units=3, activation="softmax"):
    """A classifier as in many tutorials: ids of one length, no mask, probabilities at the end."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    x = ids = layers.Input((12,), dtype="int32", name="tokens")
    x = layers.Flatten()(layers.Embedding(400, 4, embeddings_initializer="random_normal")(x))
    return keras.Model(ids, layers.Dense(units, activation)(x))


@pytest.mark.parametrize("target", ["m.tflite", "m"])
def test_a_model_of_somebody_with_a_tokenizer_and_labels(keras, tokenizer, tmp_path, target):
    model, names = somebodys(keras), ["bad", "so-so", "good"]
    artifact = tfopt.export(model, tmp_path / target, tokenizer=tokenizer, labels=names)
    texts = ["a plain text", "nothing", "another text about one"]
    found = tfopt.Predictor.load(artifact.path).predict(texts)
    ids = np.zeros((3, 12), np.int32)  # [PAD] is 0
    for row, text in enumerate(texts):
        some = load_tokenizer(tokenizer).encode(text).ids
        ids[row, : len(some)] = some
    expected = np.asarray(model(ids))
    assert found["label"].tolist() == [names[i] for i in expected.argmax(-1)]
    np.testing.assert_allclose(found["probability"], expected.max(-1), atol=1e-5)  # no second softmax
    with pytest.raises(InputError, match=r"takes 12; .*on_long='truncate'"):
        tfopt.Predictor.load(artifact.path).predict([" ".join(["text"] * 30)])
    with pytest.raises(InputError, match="a text must hold a word"):
        tfopt.Predictor.load(artifact.path).predict(["  "])
    with pytest.raises(InputError, match=r"write \[...\] around one text"):
        tfopt.Predictor.load(artifact.path).predict("nothing")


def test_one_number_for_two_classes(keras, tokenizer, tmp_path):
    model = somebodys(keras, 1, "sigmoid")
    tfopt.export(model, tmp_path / "m.tflite", tokenizer=tokenizer, labels=["no", "yes"])
    found = tfopt.Predictor.load(tmp_path / "m.tflite").predict(["one", "another one"])
    assert set(found["label"]) <= {"no", "yes"} and (found["probability"] >= 0.5).all()


def test_labels_that_do_not_fit(keras, tokenizer, tmp_path):
    model = somebodys(keras)
    for labels, says in ((["a", "b"], "labels must fit the output"), (["a", "a", "b"], "two names or more that"),
                         ("abc", "two names or more that differ")):  # fmt: skip
        with pytest.raises(InputError, match=says):
            tfopt.export(model, tmp_path / "m.tflite", tokenizer=tokenizer, labels=labels)
    plain = somebodys(keras, 3, "tanh")
    with pytest.raises(InputError, match="values of shape"):
        tfopt.export(plain, tmp_path / "m.tflite", labels=["a", "b", "c"])
    artifact = tfopt.export(model, tmp_path / "m.tflite")
    with pytest.raises(InputError, match="carries no tokenizer, so it takes arrays"):
        tfopt.Predictor.load(artifact.path).predict(["text"])


def test_damaged_members(finished_run, tmp_path):
    saved = tmp_path / "saved"
    shutil.copytree(finished_run / "baseline" / "saved_model", saved)
    for content, says in (
        (b"{}", "schema 1"),
        (b'{"schema": 1, "task": "guess"}', "bad 'task'"),
        (b"\xff", "UTF-8"),
    ):
        (saved / "assets.extra" / FACTS).write_bytes(content)
        with pytest.raises(ModelFileError, match=says):
            tfopt.Predictor.load(saved).predict(["a fig"])
    described = saved / "assets.extra" / "tfopt_inputs.json"
    written = described.read_text()
    described.write_text(written.replace("attention_mask", "attention_maskx"))
    with pytest.raises(ModelFileError, match="describes an input 'attention_maskx'"):
        tfopt.Predictor.load(saved)
    described.write_text(written)
    (saved / "assets.extra" / PACKED).write_bytes(b"no zlib")
    with pytest.raises(ModelFileError, match="tokenizer is damaged"):
        tfopt.Predictor.load(saved)
    members = {TOKENIZER: b"x" * 999}
    assert unpacked(packed(members), "m") == members
    with pytest.raises(ModelFileError, match="cut off"):
        unpacked({PACKED: packed(members)[PACKED][:-3]}, "m")
    for facts in (
        TextFacts("classification", {"label": ()}),
        TextFacts("token_classification", {"x": ("O", "B-A")}),
    ):
        with pytest.raises(ModelFileError, match="bad 'labels'"):
            TextFacts.from_json(facts.as_json(), "m")


def test_facts_that_do_not_fit_the_outputs(finished_run, tmp_path):
    saved = tmp_path / "saved"
    shutil.copytree(finished_run / "baseline" / "saved_model", saved)
    for facts, says in (
        (TextFacts("classification", {"label": ("a", "b", "c")}), "do not fit 3 labels: a, b, c"),
        (TextFacts("token_classification", {"label": ("O", "B-A")}), "do not fit 2 labels: O, B-A"),
        (TextFacts("span"), "an answer needs start_logits and end_logits"),
    ):
        (saved / "assets.extra" / FACTS).write_bytes(facts.as_json())
        texts = [("where", "a fig")] if facts.task == "span" else ["a fig"]
        with pytest.raises(InputError, match=says):
            tfopt.Predictor.load(saved).predict(texts)


def test_a_checkpoint_brings_its_labels(generation, tokenizer, tmp_path):
    config = tfopt.models.BertConfig(400, 32, 1, 2, 64, 40)
    model = tfopt.models.bert(config, 3, pooling="pooler", generation=generation)
    tfopt.models.save_pretrained(model, tmp_path / "m")
    stored = json.loads((tmp_path / "m" / "config.json").read_text())
    assert stored["id2label"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    stored["id2label"] = {"0": "bad", "1": "so-so", "2": "good"}
    (tmp_path / "m" / "config.json").write_text(json.dumps(stored))
    shutil.copy(tokenizer, tmp_path / "m" / "tokenizer.json")
    again = tfopt.models.from_pretrained(tmp_path / "m", generation, head="classification", pooling="pooler")
    smaller = tfopt.shrink(again, neurons=0.25)  # what travels with a model stays with what is made of it
    tfopt.export(smaller, tmp_path / "m.tflite", lengths=[8, 16])
    found = tfopt.Predictor.load(tmp_path / "m.tflite").predict(["a plain text", "nothing"])
    assert set(found["label"]) <= {"bad", "so-so", "good"}
    tfopt.models.save_pretrained(again, tmp_path / "n")
    assert json.loads((tmp_path / "n" / "config.json").read_text())["id2label"] == stored["id2label"]


@pytest.mark.parametrize(("head", "key"), [("classification", "label"), ("tokens", "entities"), ("span", "answer")])
def test_commands_take_a_checkpoint_with_the_head_it_was_trained_with(head, key, tokenizer, tfopt_main, tmp_path):
    config, folder = tfopt.models.BertConfig(400, 32, 1, 2, 64, 40), tmp_path / "m"
    names = {} if head == "span" else {"num_labels": 3}
    pooling = {"pooling": "pooler"} if head == "classification" else {}
    tfopt.models.save_pretrained(tfopt.models.bert(config, head=head, **names, **pooling), folder)
    shutil.copy(tokenizer, folder / "tokenizer.json")
    assert tfopt_main("export", folder, "-o", tmp_path / "m.tflite", "--length", 32)[0] == 0
    asked = ("where", "--context", folder / "context.txt") if head == "span" else ("a plain text",)
    (folder / "context.txt").write_text("a plain text")
    code, out, _ = tfopt_main("predict", tmp_path / "m.tflite", *asked, "--json")
    assert code == 0 and key in json.loads(out)["answers"][0]
    # One that tells several labels at once, or was only trained to guess words, is an encoder.
    stored = json.loads((folder / "config.json").read_text())
    if head == "classification":
        several = {**stored, "problem_type": "multi_label_classification"}
        (folder / "config.json").write_text(json.dumps(several))
        assert "last_hidden_state" in load_any(folder)(tokens_of(folder))
    (folder / "config.json").write_text(json.dumps({**stored, "architectures": ["BertForMaskedLM"]}))
    assert "last_hidden_state" in load_any(folder)(tokens_of(folder))


def tokens_of(folder):
    ids = np.array([load_tokenizer(folder).encode("a plain text").ids])
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def test_token_types_tell_question_and_context(generation, tokenizer, tmp_path):
    model = tfopt.models.bert(tfopt.models.BertConfig(400, 32, 1, 2, 64, 40), head="span", generation=generation)
    ids, mask = np.arange(8)[None].astype(np.int32), np.ones((1, 8), np.int32)
    types = np.array([[0] * 4 + [1] * 4], np.int32)
    (table,) = [w.variable for w in keras_api.weights(model) if "token_type" in w.path]
    table.assign(np.random.default_rng(0).standard_normal(table.shape))
    given = {"input_ids": ids, "attention_mask": mask}
    plain, told = (
        model({**given, "token_type_ids": t})["start_logits"].numpy() for t in (np.zeros_like(types), types)
    )
    assert np.abs(plain - told).max() > 1e-3
    untyped = tfopt.models.BertConfig(400, 32, 1, 2, 64, 40, type_vocab_size=1)
    assert "token_type_ids" not in tfopt.models.bert(untyped, head="span", generation=generation).input
    extras.keep(model, FACTS, TextFacts("span").as_json())
    tfopt.export(model, tmp_path / "m.tflite", tokenizer=tokenizer, lengths=[32])
    predictor = tfopt.Predictor.load(tmp_path / "m.tflite")
    pair = ("which text", "a plain text about nothing")
    assert predictor.predict([pair])["answer"][0] in pair[1]
    with pytest.raises(InputError, match="a pair of a question and its context"):
        predictor.predict(["which text"])
    row = load_tokenizer(tokenizer).encode(*pair)
    given = {"input_ids": np.array([row.ids]), "attention_mask": np.ones((1, len(row.ids)), int)}
    by_hand = predictor.predict({**given, "token_type_ids": np.array([row.type_ids])})
    assert 1 in row.type_ids and set(by_hand) == {"start_logits", "end_logits"}
