"""The contract of every task, and each of the encoders' end to end: from rows to a report."""

import json

import numpy as np
import pytest
import tensorflow as tf

import tfopt
from benchmarks.task_data import WRITERS
from tfopt._keras import keras_api
from tfopt._keras.loading import load_model
from tfopt.data.features import IGNORED, Feature, feature_batches, write_features
from tfopt.data.records.manifest import read_manifest
from tfopt.errors import DataError, InputError
from tfopt.numerics.metrics import answer_scores, entities, entity_scores
from tfopt.numerics.spans import best_span
from tfopt.recipe import Recipe
from tfopt.run.pipeline import run
from tfopt.run.verification import verify_run
from tfopt.tasks import TASKS

SMALL = {
    "schema": 1, "name": "small", "seed": 3, "lengths": [16, 32],
    "model": {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96,
              "dropout": 0.0},
    "exports": [{"format": "tflite", "quantization": "dynamic_int8"}],
    "measure": {"rounds": 3, "seconds": 0.05, "memory": False},
}  # fmt: skip
# Task -> the least that its first metric must reach, epochs, and texts.
ENCODERS = {
    "token_classification": (0.95, 4, 480),
    "question_answering": (0.8, 48, 960),  # what it learns comes late, and late by chance
    "multi_task": (0.9, 4, 480),
}


def test_every_task_declares_its_contract_and_is_run():
    """A row of the table without a run here or in its own file fails."""
    elsewhere = {"classification": "test_pipeline.py", "causal_lm": "test_causal_recipe.py"}
    assert set(TASKS) == set(ENCODERS) | set(elsewhere)
    assert set(Recipe.model_fields["task"].annotation.__args__) == set(TASKS)
    for task in TASKS.values():
        assert task.metrics and task.features[0] == Feature("input_ids", "tokens")


def recipe_for(task, tmp_path, generation, **changes):
    _, epochs, count = ENCODERS[task]
    train = WRITERS[task](tmp_path / "train.jsonl", count, 0)
    validation = WRITERS[task](tmp_path / "validation.jsonl", 96, 1)
    data = {"train": str(train), "validation": str(validation), "max_length": 32, "vocab_size": 400}
    if task == "multi_task":
        data["label_columns"] = ["topic", "mood"]
    training = {"epochs": epochs, "batch_size": 32, "learning_rate": 3e-3}
    values = {**SMALL, "task": task, "generation": generation, "data": data, "train": training, **changes}
    return Recipe.model_validate(values)


@pytest.mark.parametrize(
    ("task", "generation"),
    [("token_classification", "tf_keras"), ("question_answering", "keras"), ("multi_task", "tf_keras")],
)
def test_from_rows_to_a_report(task, generation, tmp_path):
    report = run(recipe_for(task, tmp_path, generation), tmp_path / "run")
    least, _, _ = ENCODERS[task]
    metric = TASKS[task].metrics[0]
    for name in ("baseline", "baseline_tflite_dynamic_int8"):
        found = report.artifact(name)
        assert set(TASKS[task].metrics) <= set(found.quality) and found.quality[metric] >= least, found.quality
        assert found.agreement > 0.9 and found.peak_memory_bytes is None
    page = (tmp_path / "run" / "report.html").read_text()
    assert metric.replace("_", " ") in page
    verify_run(tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "validation.jsonl").read_text().splitlines()]
    for name in ("baseline", "baseline_keras", "baseline_tflite_dynamic_int8"):
        path = tmp_path / "run" / report.artifact(name).path
        assert right_answers(task, tfopt.Predictor.load(path), rows) >= least - 0.05, name
    # A head that says nothing is worth nothing: the figures do not come from the labels.
    model = load_model(tmp_path / "run" / "baseline" / "model.keras")
    for weight in keras_api.weights(model):
        if "logits" in weight.path:
            weight.variable.assign(np.zeros(weight.variable.shape))
    tfopt.models.save(model, tmp_path / "dead.keras")
    score = TASKS[task](recipe_for(task, tmp_path, generation), tmp_path / "run" / "data").held_out().score
    assert score(tfopt.Predictor.load(tmp_path / "dead.keras")).metrics[metric] < 0.7


def right_answers(task, predictor, rows):
    """Share of texts whose answers, given as words, are those of the data."""
    if task == "token_classification":
        found = predictor.predict([" ".join(row["tokens"]) for row in rows])["entities"]
        wanted = [
            [
                (kind, " ".join(row["tokens"][a:b]))
                for kind, a, b in sorted(entities(row["tags"]), key=lambda e: e[1])
            ]
            for row in rows
        ]
        return np.mean([[(e.label, e.text) for e in some] == w for some, w in zip(found, wanted, strict=True)])
    if task == "question_answering":
        found = predictor.predict([(row["question"], row["context"]) for row in rows])
        return np.mean(found["answer"] == [row["answer"] for row in rows])
    found = predictor.predict([row["text"] for row in rows])
    assert set(found) == {"topic", "topic_probability", "mood", "mood_probability"}
    return np.mean([found["topic"][i] == row["topic"] for i, row in enumerate(rows) if row["topic"] is not None])


def test_a_checkpoint_learns_a_task_of_its_own(tmp_path, generation):
    encoder = tfopt.models.bert(tfopt.models.BertConfig(400, 32, 1, 2, 64, 40), generation=generation)
    tfopt.models.save_pretrained(encoder, tmp_path / "m")
    (tmp_path / "d").mkdir()
    WRITERS["multi_task"](tmp_path / "d" / "t.jsonl", 20, 0)
    heads = {"topic": 2, "mood": 3}
    model = tfopt.models.from_pretrained(tmp_path / "m", generation, heads=heads)
    ids = np.ones((2, 5), np.int32)
    found = model({"input_ids": ids, "attention_mask": ids})
    assert {name: tuple(value.shape) for name, value in found.items()} == {"topic": (2, 2), "mood": (2, 3)}
    with pytest.raises(InputError, match="several heads"):
        tfopt.models.save_pretrained(model, tmp_path / "n")
    with pytest.raises(InputError, match="2 classes or more"):
        tfopt.models.bert(tfopt.models.BertConfig(99), heads={"a": 1})


BAD = {
    "no tags": ("token_classification", {"tokens": ["a", "b"], "tags": ["O"]}, "as many words 'tokens' as 'tags'"),
    "no words": ("token_classification", {"tokens": [], "tags": []}, "as many words 'tokens' as 'tags'"),
    "elsewhere": (
        "question_answering",
        {"question": "q", "context": "c d", "answer": "x"},
        "does not stand in the",
    ),
    "no context": ("question_answering", {"question": "q", "answer": ""}, "needs a text 'context'"),
    "no column": ("multi_task", {"text": "a", "topic": "b"}, "has no column 'mood'; null stands for unknown"),
}


@pytest.mark.parametrize("case", BAD)
def test_rows_that_are_no_examples_are_named(case, tmp_path):
    task, row, says = BAD[case]
    recipe = recipe_for(task, tmp_path, "tf_keras")
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=says):
        run(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_recipes_of_tasks_that_make_no_sense(tmp_path):
    with pytest.raises(InputError, match="needs data.label_columns, two or more that differ"):
        run(
            recipe_for("multi_task", tmp_path, "tf_keras").with_changes({"data.label_columns": ["topic"]}),
            tmp_path / "a",
        )
    with pytest.raises(InputError, match="reads data.source 'files', got 'stdlib_docs'"):
        run(
            recipe_for("question_answering", tmp_path, "tf_keras").with_changes({"data.source": "stdlib_docs"}),
            tmp_path / "b",
        )
    with pytest.raises(InputError, match="label_columns are for task 'multi_task'"):
        Recipe.load("demo").with_changes({"data.label_columns": ["a", "b"]})


def test_features_come_back_as_they_were(tmp_path):
    features = [
        Feature("input_ids", "tokens"),
        Feature("tags", "tags"),
        Feature("types", "types"),
        Feature("kind", "class"),
        Feature("n", "number"),
    ]
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, 1000, rng.integers(1, 20)).tolist() for _ in range(50)]
    columns = {
        "input_ids": ids, "tags": [rng.integers(IGNORED, 4, len(row)).tolist() for row in ids],
        "types": [rng.integers(0, 2, len(row)).tolist() for row in ids],
        "kind": rng.integers(IGNORED, 3, 50).tolist(), "n": list(range(50)),
    }  # fmt: skip
    facts = {"texts": 50, "length_limit": 20, "on_long": "error", "too_long": 0, "longest": 20}
    write_features(tmp_path, "train", features=features, columns=columns, shards=3, seed=0, facts=facts)
    assert read_manifest(tmp_path, "train").features == {f.name: f.kind for f in features}
    seen = {}
    for inputs, labels in feature_batches(tmp_path, 8, split="train", shuffle=True):
        for row, number in enumerate(labels["n"].numpy()):
            length = int(inputs["attention_mask"][row].numpy().sum())
            tags = labels["tags"][row].numpy()
            assert (tags[length:] == IGNORED).all()
            types = inputs["types"][row].numpy()  # an input, and no label
            assert types[:length].tolist() == columns["types"][int(number)] and not types[length:].any()
            seen[int(number)] = (
                inputs["input_ids"][row].numpy()[:length].tolist(), tags[:length].tolist(), int(labels["kind"][row]),
            )  # fmt: skip
    assert seen == {i: (columns["input_ids"][i], columns["tags"][i], columns["kind"][i]) for i in range(50)}
    with pytest.raises(DataError, match="features differ in records"):
        write_features(
            tmp_path, "x", features=features, columns={**columns, "n": [1]}, shards=1, seed=0, facts=facts
        )


def test_entities_are_counted_as_conll_does():
    assert entities(["B-A", "B-A", "I-A", "I-B", "O", "B-B"]) == {
        ("A", 0, 1),
        ("A", 1, 3),
        ("B", 3, 4),
        ("B", 5, 6),
    }
    found = entity_scores([["B-A", "I-A", "O"], ["B-A", "O"]], [["B-A", "I-A", "B-B"], ["B-A", "I-A"]])
    assert found == {
        "entity_f1": pytest.approx(0.4),
        "entity_precision": 0.5,
        "entity_recall": pytest.approx(1 / 3),
    }


def test_answers_are_compared_as_squad_does():
    found = answer_scores(["The cat", "", "a dog ran"], [["cat"], [""], ["dog", "one dog ran off"]])
    assert found == {
        "f1": pytest.approx((1 + 1 + 2 * (2 / 2) * (2 / 4) / (1 + 0.5)) / 3),
        "exact_match": pytest.approx(2 / 3),
    }


def test_the_best_span_is_a_span():
    start, end = np.array([0.0, 1.0, 5.0, 0.0]), np.array([0.0, 9.0, 1.0, 2.0])
    assert best_span(start, end, [1, 2, 3]) == (1, 1)  # the end before the best start is no answer
    assert best_span(start - 50, end - 50, [1, 2, 3]) == (1, 1)
    start[0] = 20.0
    assert best_span(start, end, [1, 2, 3]) is None


def test_ignored_tags_do_not_train(keras):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=IGNORED)
    logits = tf.constant([[[5.0, 0.0], [0.0, 5.0], [9.0, -9.0]]])
    with_ignored = float(loss(tf.constant([[0, 1, IGNORED]]), logits))
    assert with_ignored == pytest.approx(float(loss(tf.constant([[0, 1]]), logits[:, :2])), rel=1e-5)
