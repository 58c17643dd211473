"""A classification task that every Python carries: what a text in the standard library documents.

Docstrings and comment blocks of the standard library's own sources, labelled "class", "function" or
"comment" by where they stand. Sources are only parsed, never imported. The split is by source file, so
that no module's vocabulary leaks from training into validation.
"""

import ast
import hashlib
import inspect
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from tfopt.data.readers.texts import Texts
from tfopt.errors import DataError

# Parts that distributions leave out, that are data, or that other packages own.
_EXCLUDED = {
    "site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "distutils", "turtledemo",
    "pydoc_data", "ensurepip", "encodings", "__phello__",
}  # fmt: skip
_SHORTEST = 40  # characters; shorter texts say too little
_PER_LABEL = 4500
_VALIDATION_SHARE = 0.2


def read_stdlib_docs(seed: int = 0) -> tuple[Texts, Texts]:
    """Training and validation texts, shuffled, no text in both.

    Args:
        seed: of the choice among texts where a label has too many, and of the order.

    Raises:
        DataError: fewer than 5,000 texts, as on a Python without its sources.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, tuple[str, str]] = {}  # text -> (label, file); a text seen twice counts once
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if _EXCLUDED.isdisjoint(relative.parts):
            for text, label in _labelled(path):
                found.setdefault(text, (label, str(relative)))
    rows = _balance([(text, label, file) for text, (label, file) in found.items()], random.Random(seed))
    if len(rows) < 5000:
        raise DataError(f"only {len(rows)} texts in the standard library at {root}; are its sources installed?")
    parts = ([r for r in rows if not _is_validation(r[2])], [r for r in rows if _is_validation(r[2])])
    train, validation = (
        Texts([text for text, _, _ in part], [label for _, label, _ in part], f"{name} part of {root}")
        for name, part in zip(("training", "validation"), parts, strict=True)
    )
    return train, validation


def _labelled(path: Path) -> Iterator[tuple[str, str]]:
    try:
        source = path.read_text("utf-8")
        tree = ast.parse(source)
    except (UnicodeDecodeError, SyntaxError):
        return  # the library ships a few broken files on purpose
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = (ast.get_docstring(node) or "").strip()
            if len(text) >= _SHORTEST:
                yield text, "class" if isinstance(node, ast.ClassDef) else "function"
    for text in _comments(source, tree):
        if len(text) >= _SHORTEST:
            yield text, "comment"


def _comments(source: str, tree: ast.Module) -> Iterator[str]:
    """Blocks of comment lines that stand on lines of their own, without the signs."""
    strings = (n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str))
    quoted = {line for n in strings for line in range(n.lineno, (n.end_lineno or n.lineno) + 1)}
    block: list[str] = []
    for number, line in enumerate([*source.splitlines(), ""], 1):
        stripped = line.strip()
        if stripped.startswith("#") and number not in quoted:
            block.append(stripped.lstrip("#!").strip(" -=#*"))
        elif block:
            yield inspect.cleandoc("\n".join(block))
            block = []


def _balance(rows: list[tuple[str, str, str]], rng: random.Random) -> list[tuple[str, str, str]]:
    rng.shuffle(rows)
    counts: dict[str, int] = {}
    kept = []
    for row in rows:
        counts[row[1]] = counts.get(row[1], 0) + 1
        if counts[row[1]] <= _PER_LABEL:
            kept.append(row)
    return kept


def _is_validation(file: str) -> bool:
    digest = hashlib.sha256(file.encode()).digest()
    return digest[0] < 256 * _VALIDATION_SHARE
