"""EleutherAI's harness runs our files: its scores are those of the Keras model, token by token."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

import tfopt
from tfopt._keras import extras
from tfopt.data.tokenizers import train_bpe
from tfopt.errors import InputError
from tfopt.numerics.agreement import log_softmax

from .decoders import FAMILIES, logits_of, make

pytest.importorskip("lm_eval", reason="pip install 'tfopt[lmeval]'")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

WORDS = [
    "the",
    "a",
    "red",
    "blue",
    "small",
    "old",
    "house",
    "tree",
    "river",
    "dog",
    "cat",
    "sees",
    "likes",
    "finds",
    "near",
    "under",
    "and",
    "then",
]
CHOICES = [
    {"question": "the red dog sees", "choices": [" the cat", " a tree", " old and"], "answer": number % 3}
    for number in range(4)
]


@pytest.fixture(scope="module")
def speaking():
    """A decoder with random weights and a tokenizer, which begins texts with nothing."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 12)) for _ in range(200)]
    tokenizer = train_bpe(texts, 300, "<|end|>")
    config = dataclasses.replace(
        FAMILIES["llama"], vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=64, end_tokens=(0,)
    )
    model = make(config, "keras")
    extras.keep(model, extras.TOKENIZERS[0], tokenizer.to_str().encode())
    return model, tokenizer


@pytest.fixture(scope="module")
def file(speaking, tmp_path_factory):
    path = tmp_path_factory.mktemp("lm") / "model.tflite"
    tfopt.export(speaking[0], path, lengths=[64])
    return path


def by_hand(speaking, context, continuation):
    """What the harness asks for, from the Keras model at once."""
    model, tokenizer = speaking
    ids, begun = tokenizer.encode(context + continuation).ids, len(tokenizer.encode(context).ids)
    said = log_softmax(logits_of(model, np.array([ids[:-1]], np.int32))[0])[begun - 1 :]
    return float(said[np.arange(len(said)), ids[begun:]].sum()), bool((said.argmax(-1) == ids[begun:]).all())


def task(kind, folder):
    """A task of the harness, on questions in a file."""
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in CHOICES))
    shared = {
        "task": f"tfopt_{kind}", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "q.jsonl")}},
        "test_split": "test", "output_type": kind, "doc_to_text": "{{question}}",
    }  # fmt: skip
    more = {
        "multiple_choice": {"doc_to_choice": "choices", "doc_to_target": "answer", "target_delimiter": "", "metric_list": [{"metric": "acc"}]},
        "loglikelihood_rolling": {
            "doc_to_text": "", "doc_to_target": "{{question}}", "metric_list": [{"metric": "word_perplexity"}]
        },
        "generate_until": {
            "doc_to_target": "x", "generation_kwargs": {"until": ["\n"], "max_gen_toks": 5, "do_sample": False},
            "metric_list": [{"metric": "exact_match"}],
        },
    }  # fmt: skip
    return shared | more[kind]


@pytest.fixture(scope="module")
def answers(file, tmp_path_factory):
    """The harness's results for every kind of request, and each answer."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    from tfopt.engine.lm_eval import TfoptLM

    folder = tmp_path_factory.mktemp("tasks")
    tasks = [task(kind, folder) for kind in ("multiple_choice", "loglikelihood_rolling", "generate_until")]
    return lm_eval.simple_evaluate(
        model=TfoptLM(file), tasks=tasks, task_manager=TaskManager(include_defaults=False), bootstrap_iters=0,
    )  # fmt: skip


def test_choices_are_scored_as_the_model_scores_them(answers, speaking):
    right = 0
    for sample in answers["samples"]["tfopt_multiple_choice"]:
        row = sample["doc"]
        wanted = [by_hand(speaking, row["question"], choice) for choice in row["choices"]]
        found = [(float(score), str(greedy) == "True") for ((score, greedy),) in sample["resps"]]
        np.testing.assert_allclose([f[0] for f in found], [w[0] for w in wanted], rtol=1e-4)
        assert [f[1] for f in found] == [w[1] for w in wanted]
        right += int(np.argmax([w[0] for w in wanted])) == row["answer"]
    assert answers["results"]["tfopt_multiple_choice"]["acc,none"] == right / len(CHOICES)


def test_whole_texts_are_scored_behind_what_ends_one(answers, speaking):
    model, tokenizer = speaking
    (sample, *_) = answers["samples"]["tfopt_loglikelihood_rolling"]
    ids = tokenizer.encode(sample["doc"]["question"]).ids
    said = log_softmax(logits_of(model, np.array([[0, *ids[:-1]]], np.int32))[0])
    assert float(sample["resps"][0][0]) == pytest.approx(float(said[np.arange(len(ids)), ids].sum()), rel=1e-4)


def test_answers_are_greedy(answers, file):
    generator = tfopt.Generator.load(file)
    for sample in answers["samples"]["tfopt_generate_until"]:
        config = tfopt.GenerateConfig(max_tokens=5, stop=("\n",))
        (answer,) = generator.generate([sample["doc"]["question"]], config)
        assert sample["resps"] == [[answer.text]]


def test_order_and_length_of_texts_change_nothing(file, speaking):
    """Texts share what they begin with, one may be the whole of another, and long ones lose their beginning."""
    from tfopt.engine.lm_eval import TfoptLM

    model = TfoptLM(file, max_length=24)
    pairs = [
        ("the red dog", " sees"),
        ("the red dog", " sees a cat"),
        ("the", " red dog"),
        ("the red dog", " sees"),
    ]

    def scored(context, continuation):
        return model._loglikelihood_tokens([((), *model._encode_pair(context, continuation))])[0]

    for pair in [*pairs, *reversed(pairs)]:
        assert scored(*pair) == pytest.approx(by_hand(speaking, *pair), rel=1e-4)
    ids = list(range(3, 43))
    cut = model._loglikelihood_tokens([((), ids[:35], ids[35:])])[0][0]
    said = log_softmax(logits_of(speaking[0], np.array([ids[-25:-1]], np.int32))[0, -5:])
    assert cut == pytest.approx(float(said[np.arange(5), ids[35:]].sum()), rel=1e-4)
    with pytest.raises(InputError, match="a continuation has 30 tokens; max_length is 24"):
        model._loglikelihood_tokens([((), ids[:5], ids[5:35])])


def test_what_does_not_fit_is_said(file, speaking, tmp_path):
    from tfopt.engine.lm_eval import TfoptLM

    with pytest.raises(InputError, match=r"max_length must be in \[2, 64\], got 65"):
        TfoptLM(file, max_length=65)
    with pytest.raises(InputError, match="the model came without a tokenizer"):
        TfoptLM(make("llama", "keras"))
    with pytest.raises(InputError, match="the model came without a chat template"):
        TfoptLM(file).apply_chat_template([{"role": "user", "content": "x"}])
    with pytest.raises(InputError, match="asks for beams in generation; known are do_sample"):
        TfoptLM(file)._continued("the", {"beams": 4})


def test_the_harness_has_a_command_line(file, tmp_path):
    """`python -m tfopt.engine.lm_eval` is its own, which knows our model."""
    (tmp_path / "mine.yaml").write_text(json.dumps(task("multiple_choice", tmp_path)))
    done = subprocess.run(
        [sys.executable, "-m", "tfopt.engine.lm_eval", "run", "--model", "tfopt", "--model_args", f"path={file}",
         "--tasks", "tfopt_multiple_choice", "--include_path", str(tmp_path)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "tfopt_multiple_choice" in done.stdout and "acc" in done.stdout
