"""Recipes of task "causal_lm": from running text to files that generate, and their report."""

import json

import hypothesis
import numpy as np
import pytest
from filelock import FileLock
from hypothesis import strategies as st

import tfopt
from tfopt.data.blocks import hold_out, next_tokens, write_blocks
from tfopt.data.readers.texts import Texts, read_documents
from tfopt.decoding.weights import config_of
from tfopt.errors import DataError, InputError, MissingFileError, ModelFileError
from tfopt.report import Report
from tfopt.run.pipeline import run
from tfopt.run.verification import verify_run
from tfopt.tasks import task_of

from . import gguf_files
from .conftest import REPOSITORY

RECIPE = """
schema = 1
name = "text"
task = "causal_lm"
seed = 3
lengths = [32]
{top}
[data]
train = "{train}"
max_length = 32
vocab_size = 300
shards = 2
[model]
hidden_size = 32
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
intermediate_size = 64
dropout = 0.0
{model}
[train]
epochs = 4
batch_size = 16
learning_rate = 1e-2
[[variants]]
name = "four"
[variants.train]
epochs = 1
batch_size = 16
learning_rate = 1e-3
[variants.prune]
sparsity = 0.3
frequency = 4
[variants.quantize]
weight_bits = 4
[[exports]]
format = "tflite"
of = ["baseline"]
[[exports]]
format = "tflite"
quantization = "dynamic_int8"
of = ["baseline"]
[[exports]]
format = "tflite"
quantization = "dynamic_int4"
rounding = "gptq"
max_loss = 30.0
of = ["baseline"]
[[exports]]
format = "tflite"
quantization = "trained"
[[exports]]
format = "saved_model"
jit_compile = true
of = ["baseline"]
[measure]
rounds = 3
seconds = 0.05
text_tokens = 400
memory = false
"""
ARTIFACTS = [
    "baseline", "baseline_keras", "baseline_tflite", "baseline_tflite_dynamic_int8",
    "baseline_tflite_dynamic_int4_gptq_mixed", "baseline_xla", "four_tflite_trained",
]  # fmt: skip


@pytest.fixture(scope="module")
def text_file(tmp_path_factory, worker_id):
    """Sentences of a little grammar, which a tiny model learns."""
    base = tmp_path_factory.getbasetemp()
    folder = base if worker_id == "master" else base.parent
    rng = np.random.default_rng(1)
    names, verbs, things = ["Ann", "Bob", "Eve"], ["sees", "takes", "likes"], ["a fig", "the plum", "no pear"]
    odds = [0.7, 0.2, 0.1]  # of words in the same place: with equal ones, rounding alone decides which comes first
    lines = [" ".join(rng.choice(words, p=odds) for words in (names, verbs, things)) + "." for _ in range(900)]
    path = folder / "text.txt"
    with FileLock(folder / "text.lock"):
        if not path.exists():
            path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


@pytest.fixture(scope="module")
def recipe(text_file, tmp_path_factory):
    def make(top="", model=""):
        path = tmp_path_factory.mktemp("recipe") / "text.toml"
        path.write_text(RECIPE.format(train=text_file, top=top, model=model), "utf-8")
        return tfopt.Recipe.load(path)

    return make


@pytest.fixture(scope="module")
def text_run(recipe, tmp_path_factory, worker_id):
    """A finished run, made once for all workers."""
    base = tmp_path_factory.getbasetemp()
    folder = base if worker_id == "master" else base.parent
    with FileLock(folder / "text_run.lock"):
        if not (folder / "text_run" / "manifest.json").exists():
            run(recipe(), folder / "text_run", overwrite=True)
    return folder / "text_run"


def test_the_report_says_how_well_and_how_fast_each_artifact_answers(text_run):
    report = Report.load(text_run / "report.json")
    assert [m.name for m in report.artifacts] == ARTIFACTS
    for m in report.artifacts:
        assert (
            1 < m.quality["perplexity"] < 12 and 0.4 < m.quality["next_token_accuracy"] <= 1 and m.agreement > 0.7
        )
        assert (m.generation is None) == (m.format == "saved_model")
        if m.generation is not None:
            rates = ("prefill_tokens_per_s", "decode_tokens_per_s", "first_token_s", "cache_bytes")
            assert all(m.generation[name] > 0 for name in rates)
            different = m.generation["greedy_agreement"] < 1
            assert different == ("greedy_differs_at" in m.generation)
    same = report.artifact("baseline_keras"), report.artifact("baseline_tflite"), report.artifact("baseline_xla")
    for m in same:
        assert m.quality["perplexity"] == pytest.approx(report.baseline.quality["perplexity"], rel=1e-4)
        assert m.quality["divergence"] < 1e-6
        assert m.quality["multiple_choice"] == report.baseline.quality["multiple_choice"]
    assert report.baseline.quality["divergence"] == 0 and report.baseline.quality["multiple_choice"] > 0.3
    rounded = report.artifact("baseline_tflite_dynamic_int8").quality
    assert 1e-6 < rounded["divergence"] < report.artifact("four_tflite_trained").quality["divergence"]
    assert report.artifact("baseline_tflite").generation["greedy_agreement"] == 1
    assert {x["bits"] for x in report.artifact("four_tflite_trained").layers} >= {4}
    assert report.artifact("four_tflite_trained").kernel_sparsity > 0.29
    assert any("Perplexity is that of the first 400 of" in note for note in report.notes)
    page = (text_run / "report.html").read_text("utf-8")
    assert "decode tokens/s" in page and "perplexity" in page
    assert set(verify_run(text_run)["artifacts"]) == set(ARTIFACTS) - {"baseline_keras"}


def test_its_figures_can_be_computed_again_from_the_files(text_run):
    report = Report.load(text_run / "report.json")
    text = (text_run / "data" / "validation.txt").read_text("utf-8")
    for name in ("baseline_tflite_dynamic_int8", "four_tflite_trained"):
        generator = tfopt.Generator.load(text_run / report.artifact(name).path)
        ids = generator.tokenizer.encode_ids(text)[:400]
        found = tfopt.perplexity(generator.decoder, ids, window=32)
        assert found.perplexity == pytest.approx(report.artifact(name).quality["perplexity"], rel=1e-5)
    (answer,) = generator.generate("Ann sees", tfopt.GenerateConfig(max_tokens=12))
    assert answer.text.isascii() and len(answer.tokens) == 12


def test_gpt2_in_keras_3_on_two_replicas(recipe, tmp_path):
    half = {"name": "half", "prune": {"sparsity": 0.5, "frequency": 4}, "train": {"epochs": 1, "batch_size": 16}}
    changes = {"exports": [{"format": "tflite"}], "variants": [half], "train.epochs": 3}
    chosen = recipe('generation = "keras"\nreplicas = 2', 'architecture = "gpt2"').with_changes(
        {**changes, "model.num_key_value_heads": 2}
    )
    report = run(chosen, tmp_path / "run")
    assert all(m.quality["next_token_accuracy"] > 0.4 for m in report.artifacts)
    assert report.artifact("baseline_tflite").generation["greedy_agreement"] == 1
    assert report.artifact("half_tflite").kernel_sparsity == pytest.approx(0.5, abs=0.02)


def test_a_trained_checkpoint_learns_another_text(recipe, shared_data, tmp_path):
    changes = {
        "model": {"kind": "pretrained", "folder": str(shared_data / "tinystories260k"), "dropout": 0.0},
        "variants": [], "exports": [], "data.max_length": 48, "lengths": [48],
        "train.learning_rate": 1e-3, "train.epochs": 1,
    }  # fmt: skip
    before = tfopt.Generator.load(shared_data / "tinystories260k", runtime="eager")
    report = run(recipe().with_changes(changes), tmp_path / "run")
    text = (tmp_path / "run" / "data" / "validation.txt").read_text("utf-8")
    ids = before.tokenizer.encode_ids(text)[:400]
    assert report.baseline.quality["perplexity"] < 0.5 * tfopt.perplexity(before.decoder, ids, window=48).perplexity


def test_a_gguf_file_is_a_checkpoint_to_train_on(recipe, tmp_path):
    folder = REPOSITORY / "tests" / "data" / "tiny_decoder"
    model, raw = tfopt.models.from_pretrained(folder), json.loads((folder / "tokenizer.json").read_text("utf-8"))
    path = gguf_files.write(tmp_path / "m.gguf", model, config_of(model), tokenizer=gguf_files.byte_level(raw))
    chosen = recipe().with_changes(
        {"model": {"kind": "pretrained", "folder": str(path)}, "data.max_length": 48, "lengths": [48]}
    )
    task = task_of(chosen, tmp_path / "data")
    assert path in task.check_inputs()
    facts = task.pack(lambda line: None)
    assert facts["vocab_size"] == 512 and facts["end_token"] == config_of(model).end_tokens[0]
    again = task.build(facts)
    np.testing.assert_allclose(again.get_weights()[0], model.get_weights()[0], atol=1e-6)
    bare = gguf_files.write(tmp_path / "bare.gguf", model, config_of(model))
    other = recipe().with_changes(
        {"model": {"kind": "pretrained", "folder": str(bare)}, "data.max_length": 48, "lengths": [48]}
    )
    with pytest.raises(InputError, match="holds no tokenizer"):
        task_of(other, tmp_path / "other").check_inputs()


@hypothesis.settings(deadline=None, max_examples=25)
@hypothesis.given(count=st.integers(2, 400), length=st.integers(2, 40), seed=st.integers(0, 3))
def test_every_token_but_the_first_is_predicted_once(tmp_path_factory, count, length, seed):
    folder, ids = tmp_path_factory.mktemp("blocks"), np.arange(count)
    if count < length:
        with pytest.raises(DataError, match=f"text has {count} tokens, one window takes {length}"):
            write_blocks(folder, "train", ids, length=length, texts=1, source="text", shards=2, seed=seed)
        return
    manifest = write_blocks(folder, "train", ids, length=length, texts=1, source="text", shards=2, seed=seed)
    seen = []
    for inputs, labels in next_tokens(folder, 3, "train", shuffle=True, seed=seed):
        assert (inputs["input_ids"] + 1 == labels).numpy().all() and inputs["attention_mask"].numpy().all()
        seen += labels.numpy().reshape(-1).tolist()
    left = count - 1 - manifest.records * (length - 1)
    assert sorted(seen) == list(range(1, count - left)) and 0 <= left < length - 1


def test_the_last_tenth_is_held_out():
    train, held_out = hold_out(Texts(["".join(f"line {i}\n" for i in range(100))], None, "t"))
    assert (train.texts[0] + held_out.texts[0]).count("\n") == 100 and held_out.texts[0].startswith("line 90\n")
    train, held_out = hold_out(Texts([str(i) for i in range(30)], None, "t"))
    assert len(train) == 27 and held_out.texts == ["27", "28", "29"]
    with pytest.raises(DataError, match="too short to hold a part out; give data.validation"):
        hold_out(Texts(["one line"], None, "t"))


def test_text_files_are_documents_as_they_stand(tmp_path):
    (tmp_path / "a.txt").write_text("  two\n\n lines \n")
    assert read_documents(tmp_path / "a.txt").texts == ["  two\n\n lines \n"]
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    assert read_documents(tmp_path / "a.jsonl").texts == ["one", "two"]
    (tmp_path / "a.txt").write_text(" \n")
    with pytest.raises(DataError, match="holds no text"):
        read_documents(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        ({"data.train": "nothing.txt"}, MissingFileError, "train data not found"),
        ({"data.max_length": 2, "lengths": [2]}, InputError, "data.max_length must be 4 or more"),
        ({"data.max_length": 9000, "lengths": [9000]}, DataError, "one window takes 9001; lower data.max_length"),
        ({"exports": [{"format": "tflite", "quantization": "int8"}]}, InputError, "'int8' is static, and files that"),
        ({"variants": [{"name": "a", "quantize": {"activations": "static"}}]}, InputError,
         "variant 'a': files that generate have no static kind"),
        ({"model.kind": "pretrained"}, InputError, "needs model.folder"),
        ({"model.folder": "x"}, InputError, "model.kind is 'fresh'"),
        ({"model.num_key_value_heads": 3}, InputError, "multiple of num_key_value_heads, got 2 and 3"),
    ],
)  # fmt: skip
def test_bad_recipes_and_texts(recipe, tmp_path, changes, kind, says):
    with pytest.raises(kind, match=says):
        run(recipe().with_changes(changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_encoder_generates_nothing_and_a_decoder_is_no_classifier(recipe, tmp_path, shared_data, minilm_folder):
    changes = {"model.kind": "pretrained", "model.folder": str(minilm_folder)}
    with pytest.raises(ModelFileError, match="holds an encoder; task 'causal_lm' needs a model that generates"):
        run(recipe().with_changes(changes), tmp_path / "run")
    tfopt.models.save_pretrained(
        tfopt.models.read_llama2c(shared_data / "tinystories260k" / "stories260K.bin"), tmp_path / "m"
    )
    changes["model.folder"] = str(tmp_path / "m")
    with pytest.raises(MissingFileError, match="tokenizer not found"):
        run(recipe().with_changes(changes), tmp_path / "run")
