"""The arrows of the design: who may import whom, that there are no cycles, and that importing is cheap."""

import ast
import dataclasses
import inspect
import subprocess
import sys

import grimp
import pytest

from .conftest import REPOSITORY

PACKAGE = REPOSITORY / "tfopt"
# Who may import whom, by folder or top module; what is not listed may not be imported. `__init__` is lazy.
BELOW = {"errors", "_base", "_keras"}
ALLOWED = {
    "errors": set(),
    "schedules": {"errors"},
    "callbacks": {"compress", "train"},
    "__main__": {"cli"},
    "_base": {"errors"},
    "_keras": {"errors", "_base"},
    "numerics": {"errors"},
    "data": {"errors", "_base"},
    "structure": BELOW | {"numerics"},
    "parallel": BELOW | {"structure"},
    "quantization": BELOW | {"numerics"},
    "decoding": BELOW | {"numerics"},
    "tflite": {"errors", "_base", "numerics", "quantization"},
    "store": BELOW,
    "archive": {"errors", "_base", "tflite"},
    "models": BELOW | {"numerics", "decoding", "data"},
    "compress": BELOW | {"schedules", "numerics", "quantization", "structure", "data"},
    "recipe": {"errors", "_base", "schedules", "numerics", "quantization", "compress"},
    "tasks": BELOW | {"recipe", "data", "decoding", "models", "numerics", "structure"},
    "train": BELOW | {"schedules", "store"},
    "export": BELOW | {"data", "decoding", "models", "numerics", "quantization", "tflite", "runtime", "structure"},
    "runtime": BELOW | {"data", "decoding", "numerics", "tflite"},
    "engine": BELOW | {"data", "decoding", "models", "numerics", "runtime", "tflite"},
    "measure": {"errors", "_base", "archive", "data", "decoding", "numerics", "runtime"},
    "report": {"errors", "_base", "measure", "numerics"},
}
EVERYTHING = {"run", "search", "cli"}  # in this order: each may also import those before it
MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.fixture(scope="module")
def graph():
    """Who imports whom in the package, relative imports included; those for type checkers alone do not count."""
    return grimp.build_graph("tfopt", exclude_type_checking_imports=True, cache_dir=None)


def home(module):
    return module.split(".")[1] if "." in module else ""


def test_arrows(graph):
    homes = {home(module) for module in graph.modules} - {""}
    assert homes == set(ALLOWED) | EVERYTHING, "every folder and top module has a row"
    wrong = []
    for module in graph.modules:
        for other in graph.find_modules_directly_imported_by(module):
            here, there = home(module), home(other)
            allowed = ALLOWED.get(here, set(ALLOWED) | {"run", "search", ""})
            if here != there and there not in allowed:
                wrong.append(f"{module} imports {other}")
    assert not wrong


def test_there_are_no_cycles(graph):
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert not [scc for scc in map(sorted, strongly_connected(imports)) if len(scc) > 1]


def strongly_connected(imports):
    """Sets of modules that reach each other (Kosaraju)."""
    order, seen = [], set()

    def visit(start, edges, found):
        waiting = [(start, iter(edges[start]))]
        seen.add(start)
        while waiting:
            module, others = waiting[-1]
            following = next((other for other in others if other not in seen), None)
            if following is None:
                waiting.pop()
                found.append(module)
            else:
                seen.add(following)
                waiting.append((following, iter(edges[following])))

    for module in imports:
        if module not in seen:
            visit(module, imports, order)
    reverse = {module: [m for m, others in imports.items() if module in others] for module in imports}
    seen.clear()
    for module in reversed(order):
        if module not in seen:
            found = []
            visit(module, reverse, found)
            yield found


def test_only_one_folder_knows_keras(graph):
    """`import keras` and `import tf_keras` stand nowhere; `_keras` asks for them by the generation's name."""
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not {name.split(".")[0] for name in names} & {"keras", "tf_keras"}, path


def test_techniques_do_not_import_each_other(graph):
    shared = {f"tfopt.compress.{name}" for name in ("base", "techniques", "adapters", "taught")}
    for module in graph.find_children("tfopt.compress"):
        siblings = {m for m in graph.find_modules_directly_imported_by(module) if m.startswith("tfopt.compress.")}
        assert siblings <= shared or module == "tfopt.compress.finish", module


def test_the_top_level_has_few_modules():
    assert len(list(PACKAGE.glob("*.py"))) <= 6
    assert {len(path.relative_to(PACKAGE).parts) for path in MODULES} <= {1, 2, 3}


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
        if isinstance(node, ast.ClassDef) or (isinstance(node, ast.FunctionDef) and node.args.vararg is None)
    }
    files = [*MODULES, *(REPOSITORY / "benchmarks").glob("*.py")]
    assert not [call for path in files for call in calls_of_our_own(path, names)]


def public_functions():
    import tfopt

    for name in tfopt.__all__:
        if inspect.isfunction(getattr(tfopt, name)):
            yield name, getattr(tfopt, name)
    for module in (tfopt.callbacks, tfopt.models, tfopt.store):
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
    with pytest.raises(AttributeError, match="No tfopt attribute nothing"):
        tfopt.nothing  # noqa: B018
