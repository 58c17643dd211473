"""The README is true: its commands, files, links and names exist."""

import re
import subprocess
import sys

import pytest
import typer

import tfopt
from tfopt import models
from tfopt.cli.app import app
from tfopt.data.pack import pack
from tfopt.data.readers.texts import Texts

from .conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text("utf-8")


def test_links_and_pictures_exist():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links and not [link for link in links if not (REPOSITORY / link).exists()]


def test_commands_exist():
    known = typer.main.get_command(app)
    used = set(
        re.findall(r"tfopt (?=[a-z])(demo|[a-z]+)", " ".join(re.findall(r"(?:    |`)(tfopt [^`\n]*)", README)))
    )
    assert {"run", "inspect", "bench", "verify", "data", "demo"} <= used <= set(known.commands)
    makefile = (REPOSITORY / "Makefile").read_text("utf-8")
    for target in re.findall(r"make ([a-z-]+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_scripts_exist():
    scripts = re.findall(r"python -m benchmarks\.(\w+)", README)
    there = {path.stem for path in (REPOSITORY / "benchmarks").iterdir()}  # files and packages
    assert scripts and there.issuperset(scripts)


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_python_uses_names_that_exist(block):
    compile(block, "README", "exec")
    for line in re.findall(r"^from tfopt\.[^#\n]*", block, re.MULTILINE):
        exec(line)
    for dotted in re.findall(r"(?<!from )tfopt\.([\w.]+)", block):
        target = tfopt
        for name in dotted.split("."):
            target = getattr(target, name)


# What README's snippets take for granted.
GIVEN = """
from typing import Any

import numpy as np
import tfopt

model: Any = None
data: Any = None
samples: dict[str, np.ndarray] = {}
ids: Any = None
mask: Any = None
optimizer: Any = None
loss: Any = None
"""


def test_type_checkers_know_every_name_and_argument(tmp_path):
    """Wrong ones are found, so that an empty answer means something."""
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    files = [tmp_path / f"snippet_{i}.py" for i in range(len(blocks))]
    for file, block in zip(files, blocks, strict=True):
        file.write_text(GIVEN + block)
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        GIVEN + "tfopt.prune(model, 0.5, sparsty=1)\ntfopt.nothing\ntfopt.export(model, 'm', 'tflite')\n"
    )
    command = [sys.executable, "-m", "mypy", "--config-file", str(REPOSITORY / "pyproject.toml"), *map(str, files)]
    done = subprocess.run([*command, str(wrong)], capture_output=True, text=True, cwd=REPOSITORY)
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert len(errors) == 3 and all("wrong.py" in line for line in errors), done.stdout


def test_figures_have_the_commit_they_were_measured_at():
    commits = re.findall(r"[Mm]easured\s+at\s+([0-9a-f]{7})\b", README)
    assert len(commits) >= 7
    for commit in re.findall(r"\b([0-9a-f]{7})\b", README):
        if not commit.isdigit():
            found = subprocess.run(["git", "cat-file", "-e", commit], cwd=REPOSITORY, capture_output=True)
            assert found.returncode == 0, commit


def test_no_figure_is_left_open():
    assert "@@" not in README


def own_models(folder):
    """What a reader has: a classifier and a model that generates, with tokenizers, and data; written into a folder."""
    import tf_keras

    from tfopt.data.tokenizers import load_tokenizer, save_tokenizer, train_bpe

    texts = ["a nice film about once upon a time", "a waste of time", "nothing nice", "a nice time"] * 64
    tf_keras.utils.set_random_seed(0)
    encoder = models.bert(models.BertConfig(400, 32, 4, 2, 64, 128), 2, pooling="pooler")
    models.save_pretrained(encoder, folder / "encoder")
    save_tokenizer(train_bpe(texts, 300), folder / "encoder" / "tokenizer.json")
    shape = models.CausalLMConfig(
        400, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, intermediate_size=64,
        max_position_embeddings=128,
    )  # fmt: skip
    generating = models.causal_lm(shape)
    models.save_pretrained(generating, folder / "folder")
    save_tokenizer(train_bpe(texts, 300, end_of_text="<end>"), folder / "folder" / "tokenizer.json")
    tfopt.store.save(generating, folder / "weights-before")
    labels = [i % 2 for i in range(len(texts))]
    tokenizer = load_tokenizer(folder / "encoder" / "tokenizer.json")
    named = Texts(texts, [str(label) for label in labels], "texts")
    pack(named, tokenizer, out=folder / "packed", max_length=32, shards=4, labels=["0", "1"])
    return models.from_pretrained(folder / "encoder", head="classification", pooling="pooler")


def test_the_snippets_run_in_one_go_on_models_of_ones_own(tmp_path, monkeypatch):
    import tf_keras

    from tfopt.data.batches import batches

    model = own_models(tmp_path)
    monkeypatch.chdir(tmp_path)
    data = batches("packed", 32)
    (inputs, _), *_ = data.take(1)
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss)
    given = {
        "model": model, "data": data, "ids": inputs["input_ids"].numpy(), "mask": inputs["attention_mask"].numpy(),
        "optimizer": "adam", "loss": loss,
    }  # fmt: skip
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(block, given)
    assert type(given["generator"]).__name__ == "Generator" and given["logits"].ndim == 3
    assert (tmp_path / "model.keras").exists() and (tmp_path / "weights").is_dir()
