"""The README is true: its commands, files, links and names exist."""

import re

import pytest
import typer

import tfopt
from tfopt.cli import app

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
    for dotted in re.findall(r"tfopt\.([\w.]+)", block):
        target = tfopt
        for name in dotted.split("."):
            target = getattr(target, name)


def test_no_figure_is_left_open():
    assert "@@" not in README
