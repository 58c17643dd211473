"""`tfopt verify`: what a run wrote is still what it was, and still does what it should."""

from pathlib import Path
from typing import Any

import numpy as np

from tfopt._base.files import existing
from tfopt._base.formats import format_named
from tfopt._base.manifests import MANIFEST, check_entry, read_manifest
from tfopt._keras.keras_io import call, inputs_of
from tfopt._keras.loading import load_model
from tfopt.data.verify import verify as verify_data
from tfopt.errors import InputError, VerificationError
from tfopt.export.integers import resolve
from tfopt.export.said import text_of
from tfopt.export.verify import FEW_BITS, check_outputs, largest_error, limits_for
from tfopt.measure.measure import Log
from tfopt.recipe import Recipe
from tfopt.recipe.sections import ExportSection
from tfopt.report import Report
from tfopt.tasks import task_of


def verify_run(folder: str | Path, log: Log = lambda line: None) -> dict[str, Any]:
    """Checks the manifest, the packed data, and every exported artifact against its Keras model.

    Returns:
        "files": how many match the manifest; "artifacts": name -> what was found.

    Raises:
        InputError: the folder holds no finished run.
        DataError: a file is missing, changed or damaged; it is named.
        VerificationError: an artifact fails a check; both are named.
    """
    folder = existing(folder, "run folder")
    if not (folder / MANIFEST).exists():
        raise InputError(f"{folder} holds no finished run (no {MANIFEST}); finish it with --resume")
    count = check_manifest(folder)
    log(f"{count} files match the manifest")
    verify_data(folder / "data")
    recipe = Recipe.load(folder / "recipe.toml")
    given = task_of(recipe, folder / "data").samples()
    planned = recipe.artifacts()
    recorded = {m.name: m.max_abs_error for m in Report.load(folder / "report.json").artifacts}
    found: dict[str, Any] = {}
    for owner in dict.fromkeys(a.owner for a in planned):
        model = load_model(folder / owner / "model.keras")
        inputs = inputs_of(model)
        values = {name: given[name] for name in inputs.specs}
        reference = {name: v.numpy() for name, v in call(model, inputs, values).items()}
        for artifact in (a for a in planned if a.owner == owner):
            log(f"verifying {artifact.name}")
            section, path = artifact.section, folder / artifact.path
            try:
                writer = format_named(section.format).writer_module()
                writer.check(path, section.quantization, section.jit_compile)
                limit = _limit(recorded[artifact.name], section, reference)
                name, config = resolve(section.quantization, model)
                verified = check_outputs(
                    path, values, reference=reference, given=True, limit=limit, accept=section.accept,
                    limits=FEW_BITS if section.by_layer else limits_for(name, config),
                    text=text_of(model, values),
                )  # fmt: skip
            except VerificationError as problem:
                raise VerificationError(problem.check, f"{artifact.name}: {problem.what}") from problem
            error = largest_error(verified.outputs, reference)
            found[artifact.name] = {"max_abs_error": error, "agreement": verified.agreement}
    return {"files": count, "artifacts": found}


def _limit(recorded: float | None, section: ExportSection, reference: dict[str, np.ndarray]) -> float | None:
    """How far an integer file may be off its float model: about as far as it was when it was made."""
    if recorded is None or (section.quantization in (None, "float16", "dynamic_int8") and not section.by_layer):
        return None
    return 2 * recorded + 0.05 * max(float(np.abs(value).max()) for value in reference.values())


def check_manifest(folder: Path) -> int:
    """Compares every file with the manifest and returns how many there are.

    Raises:
        DataError: a file is missing, or its size or SHA-256 differs; it is named.
    """
    expected = read_manifest(folder)
    for name, entry in expected.items():
        check_entry(folder, name, entry)
    return len(expected)
