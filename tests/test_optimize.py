"""`tfopt optimize`: from a model and texts to one file, on models and texts of several kinds."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

import tfopt
from tfopt._base.members import FACTS, TOKENIZER
from tfopt._keras import extras, keras_api
from tfopt._keras.loading import load_model
from tfopt.compress.vocabulary import all_rows, cut_rows
from tfopt.data import cache
from tfopt.data.tokenizers import load_tokenizer, train_bpe
from tfopt.errors import DataError, InputError, VerificationError
from tfopt.export import export
from tfopt.models import BertConfig, bert
from tfopt.recipe.goal import check_goal
from tfopt.search import clock
from tfopt.search.ladder import full_ladder, short_ladder
from tfopt.search.optimize import forget
from tfopt.search.original import Corpus, recipe_of
from tfopt.train import TrainConfig

CONFIG = BertConfig(
    vocab_size=300, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64,
    max_position_embeddings=24, hidden_dropout_prob=0.0,
)  # fmt: skip


def quiet(line):
    pass


@pytest.fixture(scope="module")
def files(finished_run, tmp_path_factory):
    """A trained classifier of a run, and the texts that it was trained on."""
    folder = tmp_path_factory.mktemp("texts")
    recipe = tfopt.Recipe.load(finished_run / "recipe.toml")
    return finished_run / "baseline" / "model.keras", recipe.data.train, recipe.data.validation, folder


@pytest.fixture(scope="module")
def done(files):
    """One optimization that was interrupted, and went on; what it logged."""
    model, train, validation, folder = files
    lines = []

    def until_the_first_export(line):
        lines.append(line)
        if line.startswith("[export small"):
            raise KeyboardInterrupt

    def again(log):
        return tfopt.optimize(
            model, train, validation=validation, out=folder / "out", accuracy=0.5, rounds=3, minutes=2.5, log=log
        )

    def noted(data, kept, fingerprint):
        lines.append("the teacher is asked")
        return write(data, kept, fingerprint)

    write = cache._write
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(cache, "_write", noted)
        again(until_the_first_export)
    assert not (folder / "out" / "model.tflite").exists()
    return again(lines.append), folder / "out", lines


def test_it_goes_on_where_it_was_interrupted(done):
    _, _, lines = done
    steps = [line.partition("]")[0] for line in lines if line.startswith("[")]
    assert lines.count("the teacher is asked") == 1, "students that ask the same share its answers"
    trained = [step for step in steps if step.startswith("[train small")]
    assert "[train small" in trained and len(trained) == len(set(trained))
    written = [step for step in steps if step.startswith("[export small")]
    assert written[0] in written[1:]  # the one that was interrupted is written anew


def test_it_ends_with_one_file_that_answers_texts(done, files):
    found, out, _ = done
    assert found.file == out / "model.tflite" and found.file.read_bytes()[4:8] == b"TFL3"
    texts = ["one good thing", "a bad thing"]
    answers = tfopt.Predictor.load(found.file).predict(texts)
    labels = extras.of(load_model(files[0]))
    assert set(answers["label"]) <= set(json.loads(labels[FACTS])["labels"]["label"])
    report = tfopt.Report.load(out / "report.json")
    base, shipped = report.baseline, report.artifact(report.shipped)
    assert base.name == "baseline" and base.format == "saved_model"
    assert shipped.bytes == found.file.stat().st_size == found.result.chosen.bytes
    assert found.smaller == pytest.approx(base.bytes / shipped.bytes) and found.faster == shipped.speedup
    assert (
        found.share == pytest.approx(shipped.quality["accuracy"] / base.quality["accuracy"]) and found.share >= 0.5
    )
    for part in (f"{found.faster:.1f} times faster", f"{found.smaller:.1f} times smaller", f"{found.share:.1%}"):
        assert part in found.sentence
    assert report.notes[0] == found.sentence and found.sentence in (out / "report.html").read_text()
    assert repr(found) == f"Optimized({found.sentence!r})" and "<table" in found._repr_html_()
    assert {m.name for m in report.artifacts[1:]} == {p.name for p in found.result.points}
    assert report.curves["small"]["loss"] and (out / "front.png").read_bytes()[:4] == b"\x89PNG"


def test_accuracy_is_that_of_the_answers_to_the_texts(done, files):
    found, _, _ = done
    rows = [line.split("\t") for line in Path(files[2]).read_text("utf-8").splitlines()]
    head = rows[0]
    texts, labels = ([row[head.index(name)] for row in rows[1:]] for name in ("text", "label"))
    answers = tfopt.Predictor.load(found.file).predict(texts)["label"]
    assert np.mean(answers == np.array(labels)) == pytest.approx(found.result.chosen.accuracy)


def test_another_goal_reuses_everything(done, files, tfopt_main):
    found, out, lines = done
    assert any(line.startswith("[train small]") and "of 2.5 minutes left" in line for line in lines)
    model, train, validation, _ = files
    code, shown, progress = tfopt_main(
        "optimize", model, "--train", train, "--validation", validation, "-o", out, "--max-bytes", 10**9, "--minutes", 2.5,
        "--rounds", 3, "--json",
    )  # fmt: skip
    assert code == 0 and "[train" not in progress and "[export" not in progress and "[data" not in progress
    best = max(point.accuracy for point in found.result.points)
    assert json.loads(shown)["share"] * found.report.baseline.quality["accuracy"] == pytest.approx(best)
    code, _, told = tfopt_main(
        "optimize", model, "--train", train, "--validation", validation, "-o", out, "--max-latency", 1e-6, "--minutes", 2.5,
        "--rounds", 3,
    )  # fmt: skip
    assert code == 2 and "no point meets --max-latency-ms" in told.splitlines()[-1]
    assert (out / "model.tflite").exists()


def test_without_time_the_plain_file_is_what_there_is(files, tmp_path):
    model, train, validation, _ = files
    lines = []
    found = tfopt.optimize(
        model,
        train,
        validation=validation,
        out=tmp_path / "o",
        accuracy=0.5,
        minutes=0.01,
        rounds=3,
        log=lines.append,
    )
    assert "no students are trained" in lines and found.result.chosen.name.startswith("baseline_tflite")


def test_a_folder_without_a_head_is_trained_and_its_vocabulary_cut_and_given_back(tmp_path):
    """Students have the tokens that the texts have; the others' rows come back in a file of its own."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghijklmnop"), 5)) for _ in range(300)]
    tokenizer = train_bpe([" ".join(words)] * 3, 700)
    vocabulary, folder = tokenizer.get_vocab_size(), tmp_path / "hf"
    tfopt.models.save_pretrained(bert(dataclasses.replace(CONFIG, vocab_size=vocabulary)), folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    few = tmp_path / "few.csv"
    few.write_text("text,label\n" + "".join(f"{' '.join(rng.choice(words[:20], 4))},{i % 2}\n" for i in range(80)))
    found = tfopt.optimize(
        folder, few, out=tmp_path / "o", accuracy=0.01, rounds=2, minutes=3, max_length=24, epochs=1, log=quiet
    )
    assert found.report.curves["baseline"]["loss"] and found.file.exists()
    names = {point.name for point in found.result.points}
    assert {"small", "small-narrow", "small-all-words"} <= names, names
    rows = {}
    for run in (tmp_path / "o" / "runs").glob("students-*"):
        rows[run.name] = load_model(run / "small" / "model.keras").get_layer("word_embeddings").embeddings.shape[0]
    assert len(rows) == 1 and next(iter(rows.values())) < 0.8 * vocabulary
    assert "vocabulary of the texts" in next(p.choices for p in found.result.points if p.name == "small")
    assert (tmp_path / "o" / "train.jsonl").read_text().count("\n") == 72  # a tenth was held out
    assert (tmp_path / "o" / "validation.jsonl").read_text().count("\n") == 8


def test_a_model_of_somebody_and_a_student_that_is_no_copy_of_its_own(files, tmp_path, monkeypatch):
    """An input of another name, no mask, one length, probabilities: students are found without a word about any of it.

    One file that does not pass verification costs neither the others nor the report.
    """
    from tfopt.run import pipeline

    def broken(model, path, **settings):
        if "small_tflite" in str(path):
            raise VerificationError("correlation", "it answers otherwise")
        return export(model, path, **settings)

    monkeypatch.setattr(pipeline, "export", broken)
    keras = keras_api.keras_module("keras")
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_bytes(extras.of(load_model(files[0]))[TOKENIZER])
    rows = load_tokenizer(tokenizer).get_vocab_size()
    inputs = keras.Input((16,), dtype="int32", name="tokens")
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(rows, 32)(inputs))
    x = keras.layers.Dense(64, activation="relu")(x)
    labels = {line.partition("\t")[0] for line in Path(files[1]).read_text("utf-8").splitlines()[1:]}
    model = keras.Model(inputs, keras.layers.Dense(len(labels), activation="softmax")(x))
    found = tfopt.optimize(
        model, files[1], validation=files[2], out=tmp_path / "o", accuracy=0.01, tokenizer=tokenizer, max_length=16,
        rounds=2, minutes=2, log=quiet,
    )  # fmt: skip
    names = {point.name for point in found.result.points}
    assert "small-narrow" in names and "small" not in names
    assert any("small_tflite_dynamic_int8 is left out: " in note for note in found.report.notes)
    assert set(tfopt.Predictor.load(found.file).predict(["a good thing"])["label"]) <= labels


def test_beginning_anew_removes_only_what_an_optimization_wrote(tmp_path):
    (tmp_path / "runs" / "original").mkdir(parents=True)
    (tmp_path / "plan.json").write_text("{}")
    (tmp_path / "mine.txt").write_text("mine")
    forget(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_rows_that_were_cut_come_back():
    model = bert(CONFIG, 2, generation="keras")
    kept = np.array([0, 1, 5, 7, 200])
    small = cut_rows(model, kept)
    table = small.get_layer("word_embeddings").embeddings
    table.assign(table.numpy() + 1)
    whole = all_rows(small, model, kept)
    before, after = (keras_api.to_numpy(m.get_layer("word_embeddings").embeddings) for m in (model, whole))
    np.testing.assert_allclose(after[kept], before[kept] + 1)
    others = np.setdiff1d(np.arange(300), kept)
    np.testing.assert_array_equal(after[others], before[others])
    with pytest.raises(InputError, match="does not go with 4 tokens"):
        all_rows(small, model, kept[:4])


def test_students_get_smaller(generation):
    model = bert(CONFIG, 2, generation=generation)
    full, short = full_ladder(model), short_ladder(model)
    assert [r.name for r in full] == ["half", "pooled", "pooled-narrow", "small", "small-narrow"]
    assert [r.name for r in short] == ["small", "small-narrow"]
    by_name = {r.name: r for r in full}
    assert by_name["half"].sections["shrink"]["layers"] == [0, 2] and by_name["half"].share < 0.45
    assert by_name["pooled"].sections["shrink"]["pool_early"] and by_name["pooled"].share < by_name["half"].share
    assert by_name["small"].share < 0.5 * by_name["half"].share
    assert by_name["small-narrow"].weights < by_name["small"].weights < by_name["half"].weights
    assert by_name["half"].sections["distill"]["hidden"] == 1.0
    assert short[0].sections["shrink"]["layers"] == [0, 1, 2] and short[0].start == "baseline"
    assert "without layers 0, 2" in full[0].says and "4 bits" in full[-1].says


def test_models_without_layers_have_students_too(keras):
    inputs = keras.Input((12,), dtype="int32", name="input_ids")
    x = keras.layers.Embedding(50, 16)(inputs)
    x = keras.layers.GlobalAveragePooling1D()(x)
    x = keras.layers.Dense(32, activation="relu")(x)
    rungs = full_ladder(keras.Model(inputs, keras.layers.Dense(2)(x)))
    assert rungs[0].sections["shrink"] == {"neurons": 0.5, "importance": "first_order"}
    assert rungs[0].sections["distill"]["hidden"] == 0.0
    nothing = keras.Model(inputs, keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(50, 2)(inputs)))
    with pytest.raises(InputError, match="nothing can be taken out of model"):
        full_ladder(nothing)


def test_epochs_fit_the_time():
    rungs = full_ladder(bert(CONFIG, 2))

    def takes(rung, epochs):
        return 10.0 * epochs

    whole = {rung.name: rung.epochs for rung in rungs}
    total = 10 * sum(whole.values())
    assert clock.epochs_within(rungs, takes, None, any_share=False) == whole
    assert clock.epochs_within(rungs, takes, clock.OVERRUN * total, any_share=False) == whole
    some = clock.epochs_within(rungs, takes, 0.7 * total, any_share=False)
    assert sum(some.values()) * 10 * clock.OVERRUN <= 0.7 * total and all(
        some[n] >= 0.5 * whole[n] - 1 for n in whole
    )
    assert clock.epochs_within(rungs, takes, 0.3 * total, any_share=False) == {}
    assert clock.epochs_within(rungs, takes, 0.3 * total, any_share=True)
    assert clock.epochs_within(rungs, takes, -5.0, any_share=True) == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"accuracy": 1.5}, r"accuracy must be in \(0, 1\], got 1.5"),
        ({"accuracy": math.nan}, r"accuracy must be in \(0, 1\], got nan"),
        ({"max_bytes": 0}, "max_bytes must be above 0, got 0"),
        (
            {"accuracy": 0.9, "max_latency_ms": 2},
            "give one of accuracy, max_latency_ms, max_bytes, got accuracy, max",
        ),
        ({"minutes": -1}, "minutes must be above 0, got -1"),
    ],
)
def test_bad_goals_are_refused_before_anything_is_written(files, tmp_path, given, message):
    with pytest.raises(InputError, match=message):
        tfopt.optimize(files[0], files[1], out=tmp_path / "o", **given)
    assert not (tmp_path / "o").exists()
    assert check_goal(None, None, None) == ("accuracy", 0.99)


def test_data_and_models_that_do_not_fit(files, tmp_path):
    model, train, _, _ = files
    plain = tmp_path / "plain.txt"
    plain.write_text("a line\nanother\n")
    with pytest.raises(DataError, match="has no labels; a classifier needs"):
        tfopt.optimize(model, plain, out=tmp_path / "o", log=quiet)
    other = tmp_path / "other.csv"
    other.write_text("text,label\n" + "".join(f"text {i},{'abc'[i % 3]}\n" for i in range(30)))
    with pytest.raises(InputError, match="the texts have the labels a, b, c"):
        tfopt.optimize(model, other, out=tmp_path / "o", log=quiet)
    bare = load_model(model)
    extras.put(bare, {n: c for n, c in extras.of(bare).items() if n not in (FACTS, TOKENIZER)})
    with pytest.raises(InputError, match="no tokenizer came with the model; give one"):
        tfopt.optimize(bare, train, out=tmp_path / "o", log=quiet)
    with pytest.raises(InputError, match="minutes must be above 0, got 0"):
        TrainConfig(minutes=0)
    assert not (tmp_path / "o").exists()


def test_a_folder_of_hugging_face_keeps_the_head_it_was_trained_with(files, tmp_path):
    _, train, validation, _ = files
    tokenizer = extras.of(load_model(files[0]))[TOKENIZER]
    size = len(json.loads(tokenizer)["model"]["vocab"]) + 8
    model = bert(BertConfig(size, 32, 1, 4, 64, 32, hidden_dropout_prob=0.0), 2, pooling="pooler")
    tfopt.models.save_pretrained(model, tmp_path / "hf")
    (tmp_path / "hf" / "tokenizer.json").write_bytes(tokenizer)
    (tmp_path / "o").mkdir()
    corpus = Corpus(Path(train), Path(validation))
    with pytest.raises(InputError, match="the model's classes are LABEL_0, LABEL_1, in this order; the texts have"):
        recipe_of(tmp_path / "hf", corpus, tmp_path / "o", tokenizer=None, max_length=None, epochs=3)
    raw = json.loads((tmp_path / "hf" / "config.json").read_text())
    raw["id2label"] = {"0": "fruit", "1": "metal"}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(raw))
    recipe = recipe_of(tmp_path / "hf", corpus, tmp_path / "o", tokenizer=None, max_length=None, epochs=3)
    assert recipe.model.kind == "keras" and recipe.train.epochs == 0
    given = load_model(tmp_path / "o" / "given.keras")
    for weight in keras_api.weights(model):
        same = next(w for w in keras_api.weights(given) if w.path == weight.path)
        np.testing.assert_array_equal(keras_api.to_numpy(same.variable), keras_api.to_numpy(weight.variable))
