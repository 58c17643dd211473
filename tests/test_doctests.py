"""The examples in docstrings are true."""

import doctest
import importlib

import pytest

from .conftest import REPOSITORY

EXAMPLES = sorted(path for path in (REPOSITORY / "tfopt").rglob("*.py") if ">>> " in path.read_text("utf-8"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples(path):
    name = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
    module = importlib.import_module(name)
    found = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.attempted and not found.failed


def test_the_functions_that_people_call_have_examples():
    assert {"prune", "finish", "export", "encoder", "shrink", "schedules"} <= {path.stem for path in EXAMPLES}
