"""The documents for contributors are true: their names, files and tables exist, and the four walks lead somewhere."""

import importlib
import re

import pytest

from .conftest import REPOSITORY

CONTRIBUTING = (REPOSITORY / "CONTRIBUTING.md").read_text("utf-8")
ARCHITECTURE = (REPOSITORY / "ARCHITECTURE.md").read_text("utf-8")
WALKS = re.findall(r"^## (Add a [^\n]*)\n(.*?)(?=^## |\Z)", CONTRIBUTING, re.MULTILINE | re.DOTALL)


def resolved(dotted):
    """The object of a dotted name, whose modules are imported on the way."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for name in parts[cut:]:
            found = getattr(found, name)
        return found
    raise AssertionError(dotted)


def test_there_are_four_walks():
    assert [title for title, _ in WALKS] == [
        "Add a technique",
        "Add a format",
        "Add a family of checkpoints",
        "Add a task",
    ]


@pytest.mark.parametrize(("title", "text"), WALKS, ids=[title for title, _ in WALKS])
def test_a_walk_names_what_exists_and_ends_at_a_test(title, text):
    names = re.findall(r"`(tfopt\.[\w.]+)`", text)
    assert names and all(resolved(name) is not None for name in names)
    files = re.findall(r"`((?:tests|tfopt|benchmarks)/[\w/]+\.py)`", text)
    missing = [file for file in files if "NAME" not in file and not (REPOSITORY / file).exists()]
    folders = [file.rpartition("/")[0] for file in files if "NAME" in file]
    assert not missing and all((REPOSITORY / folder).is_dir() for folder in folders)
    assert any(file.startswith("tests/") for file in files)
    for table in re.findall(r"`([A-Z]+)` in `(tests/\w+\.py)`", text):
        assert re.search(rf"^{table[0]} = ", (REPOSITORY / table[1]).read_text("utf-8"), re.MULTILINE), table


def test_members_that_a_walk_asks_for_are_those_of_the_contract():
    from tfopt.compress.base import TechniqueModule
    from tfopt.export.job import Writer

    technique = {"Config", "prepare", "finish", "is_attached", "explain", "options", "at_once"}
    members = {n for n in [*vars(TechniqueModule), *TechniqueModule.__annotations__] if not n.startswith("_")}
    assert members == technique and all(f"`{name}`" in WALKS[0][1] for name in technique)
    writer = {name for name in vars(Writer) if not name.startswith("_")}
    assert writer == {"lengths", "write", "check"} and all(f"`{name}`" in WALKS[1][1] for name in writer)


def test_the_picture_of_the_house_names_its_folders():
    package = REPOSITORY / "tfopt"
    folders = {path.name for path in package.iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    named = set(re.findall(r"`(\w+)/`", ARCHITECTURE))
    assert folders <= named
    for place in re.findall(r"`((?:\w+/)+\w+\.py)`", ARCHITECTURE):
        assert (package / place).exists() or (REPOSITORY / place).exists(), place


def test_commands_for_contributors_exist():
    makefile = (REPOSITORY / "Makefile").read_text("utf-8")
    for target in re.findall(r"make ([a-z-]+)", CONTRIBUTING):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    assert (REPOSITORY / ".pre-commit-config.yaml").exists()


def test_the_promises_name_files_and_tests_that_exist():
    security = (REPOSITORY / "SECURITY.md").read_text("utf-8")
    named = set(re.findall(r"`((?:tfopt|tests)/[\w/]+\.py)`", security))
    assert len(named) > 10 and not [name for name in named if not (REPOSITORY / name).exists()]
