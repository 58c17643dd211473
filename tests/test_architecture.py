"""The arrows of the design: who may import whom, and that importing the package is cheap."""

import ast
import dataclasses
import inspect
import subprocess
import sys

import pytest

from .conftest import REPOSITORY

PACKAGE = REPOSITORY / "tfopt"
LEAVES = {
    "_keras",
    "errors",
    "files",
    "schedules",
    "tflite_file",
    "child",
    "native_log",
    "keras_api",
    "keras_io",
    "layer_calls",
    "selection",
}
ALLOWED = {
    "numerics": set(),
    "decoding": set(),
    "models": {"numerics", "decoding"},
    "data": set(),
    "quantization": {"numerics"},
    "structure": {"decoding"},
    "compress": {"numerics", "quantization", "structure", "data", "decoding"},
    "train": {"recipe"},
    "export": {"data", "decoding", "numerics", "quantization"},
    "runtime": {"decoding"},
    "archive": set(),
    "measure": {"archive", "runtime", "data", "decoding", "numerics"},
    "report": {"measure"},
    "recipe": {"recipe_sections", "quantization"},
    "recipe_sections": {"numerics", "quantization"},
    "tasks": {"recipe", "recipe_sections", "data", "decoding", "models"},
    "run_folder": {"recipe", "report"},
}  # top-level modules that are not listed join everything: pipeline, cli, compare, inspection, ...
MODULES = sorted(PACKAGE.rglob("*.py"))


def imports(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "tfopt":
                yield from (f"tfopt.{alias.name}" for alias in node.names)
            else:
                yield node.module


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_arrows(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    home, names = parts[0], list(imports(path))
    if parts != ("keras_api",):
        assert not [n for n in names if n.split(".")[0] in ("keras", "tf_keras")], "only keras_api imports Keras"
    own = {n.split(".")[1] for n in names if n.startswith("tfopt.")} - {home}
    if home in ALLOWED:
        assert own <= ALLOWED[home] | LEAVES
    elif home in LEAVES:
        assert own <= LEAVES
    if home == "compress" and parts[1] not in ("base", "__init__"):
        siblings = {n.split(".")[2] for n in names if n.startswith("tfopt.compress.")}
        assert siblings <= {"base"}, "techniques do not import each other"
    if home in (
        "recipe",
        "recipe_sections",
        "archive",
        "schedules",
        "errors",
        "files",
        "tflite_file",
        "child",
        "native_log",
        "report",
    ):
        assert not [n for n in names if n.split(".")[0] == "tensorflow"]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_modules_stay_readable(path):
    source = path.read_text("utf-8")
    assert source.count("\n") <= 400
    tree = ast.parse(source)
    assert ast.get_docstring(tree) or not source.strip()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 90, f"{node.name} does not fit on a screen"


@pytest.mark.parametrize(
    "code",
    ["import tfopt; dir(tfopt)", "import tfopt; tfopt.Recipe.load('demo')", "import tfopt; tfopt.schedules, tfopt.TfoptError",
     "import tfopt.cli", "from tfopt.report import Report"],
)  # fmt: skip
def test_no_tensorflow_before_it_is_needed(code):
    check = f"{code}\nimport sys; sys.exit(any(m in sys.modules for m in ('tensorflow', 'keras', 'tf_keras')))"
    assert subprocess.run([sys.executable, "-c", check], cwd=REPOSITORY).returncode == 0


def calls_of_our_own(path, names):
    """Calls of functions and classes of these names with more than three positional arguments."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call) and not any(isinstance(a, ast.Starred) for a in node.args):
            called = getattr(node.func, "id", None)  # methods may be those of other packages
            if called in names and len(node.args) > 3:
                yield f"{path.name}:{node.lineno} {called}"


def test_arguments_have_names_at_the_call():
    names = {
        node.name
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    files = [*MODULES, *(REPOSITORY / "benchmarks").glob("*.py")]
    assert not [call for path in files for call in calls_of_our_own(path, names)]


def public_functions():
    import tfopt

    for name in tfopt.__all__:
        if inspect.isfunction(getattr(tfopt, name)):
            yield name, getattr(tfopt, name)
    for module in (tfopt.callbacks, tfopt.models):
        for name in module.__all__:
            if not dataclasses.is_dataclass(getattr(module, name)):
                yield f"{module.__name__}.{name}", getattr(module, name)
    for owner in (tfopt.Predictor, tfopt.Generator, tfopt.Distiller):
        for name, method in inspect.getmembers(owner, inspect.isfunction):
            if not name.startswith("_"):
                yield f"{owner.__name__}.{name}", method


def test_everything_after_two_arguments_is_named():
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    for name, function in public_functions():
        parameters = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
        assert sum(p.kind in kinds for p in parameters) <= 2, name


def test_public_names_exist_and_functions_stay_functions():
    import tfopt
    import tfopt.export.verify
    import tfopt.measure.size  # importing the folders must not hide the functions of the same name

    for name in tfopt.__all__:
        assert getattr(tfopt, name) is not None
    assert callable(tfopt.export) and callable(tfopt.measure) and callable(tfopt.compare)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tfopt.nothing  # noqa: B018
