"""The README is true: its commands, files, links and names exist."""

import re
import subprocess
import sys

import pytest
import typer

import tfopt
from tfopt.cli.app import app

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
    assert scripts and all((REPOSITORY / "benchmarks" / f"{s}.py").exists() for s in scripts)


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
