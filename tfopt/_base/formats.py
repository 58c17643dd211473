"""The table of formats, and the one place that tells what a path is. Loads no TensorFlow.

A new format is a module in `tfopt.runtime` that runs it, one in `tfopt.export` that writes and checks it, and a
row.
"""

import dataclasses
import importlib
from pathlib import Path
from typing import Any, Literal

from tfopt._base.files import existing
from tfopt._base.foreign import regular
from tfopt.errors import InputError, ModelFileError

# What a path may be: a format of the table, or something else that commands take.
Kind = Literal[
    "tflite",
    "litertlm",
    "saved_model",
    "keras",
    "hugging_face",
    "keras_hub",
    "llama2c",
    "gguf",
    "pickle",
    "archive",
    "run",
    "pack",
    "unknown",
]
_FLOAT16 = "float16"
# Of models that generate, and of all.
GENERATING = (
    "dynamic_int8", "dynamic_int4", "dynamic_int4_block32", "dynamic_int4_block64", "dynamic_int4_block128",
    "weight_only_int8", "weight_only_int4",
)  # fmt: skip
INTEGERS = (*GENERATING, "int8", "int16")


@dataclasses.dataclass(frozen=True)
class Format:
    """One kind of artifact.

    Attributes:
        name: as in `export(format=...)` and reports.
        title: as in sentences.
        suffixes: of its files, the first one is written; () for a folder.
        marker: the file that a folder of this format holds; "" for files.
        runtime: module in `tfopt.runtime` with `predictor_of(path)`, the class that runs a path.
        writer: module in `tfopt.export` with `lengths`, `write` and `check`; "" for what is only read.
        quantizations: names of what it holds besides float32.
        compiles: whether XLA may compile it where it is loaded.
        fixed_lengths: whether every length needs a signature of its own; what XLA compiles always does.
        file: its name in a run's folder.
    """

    name: Kind
    title: str
    suffixes: tuple[str, ...]
    marker: str
    runtime: str
    writer: str
    quantizations: tuple[str, ...]
    compiles: bool
    fixed_lengths: bool
    file: str

    @property
    def is_folder(self) -> bool:
        return not self.suffixes

    def holds(self, path: Path) -> bool:
        """Whether a path is of this format, from its name and what lies in it."""
        return (path / self.marker).is_file() if self.is_folder else path.is_file() and path.suffix in self.suffixes

    def runtime_module(self) -> Any:
        return importlib.import_module(f"tfopt.runtime.{self.runtime}")

    def writer_module(self) -> Any:
        return importlib.import_module(f"tfopt.export.{self.writer}")


FORMATS = (
    Format(
        name="saved_model", title="SavedModel", suffixes=(), marker="saved_model.pb", runtime="saved_model",
        writer="saved_model", quantizations=(), compiles=True, fixed_lengths=False, file="saved_model",
    ),
    Format(
        name="tflite", title="TFLite file", suffixes=(".tflite",), marker="", runtime="tflite", writer="tflite",
        quantizations=(_FLOAT16, *INTEGERS, "trained"), compiles=False, fixed_lengths=True, file="model.tflite",
    ),
    Format(
        name="litertlm", title="LiteRT-LM file", suffixes=(".litertlm",), marker="", runtime="litert_lm",
        writer="litert_lm", quantizations=(_FLOAT16, *GENERATING, "trained"), compiles=False, fixed_lengths=True,
        file="model.litertlm",
    ),
    Format(
        name="keras", title="Keras file", suffixes=(".keras", ".h5"), marker="", runtime="keras_model", writer="",
        quantizations=(), compiles=False, fixed_lengths=False, file="model.keras",
    ),
)  # fmt: skip
WRITTEN = tuple(format for format in FORMATS if format.writer)
PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt")


def format_named(name: str) -> Format:
    """The format of that name that can be written.

    Raises:
        InputError: there is none; those that there are are named.
    """
    found = next((format for format in WRITTEN if format.name == name), None)
    if found is None:
        raise InputError(f"format must be one of {', '.join(f.name for f in WRITTEN)}, got {name!r}")
    return found


def format_for(path: Path) -> Format:
    """The format that a path's name asks for: that of its suffix, else a folder."""
    files = [format for format in WRITTEN if path.suffix in format.suffixes]
    return files[0] if files else next(format for format in WRITTEN if format.is_folder)


def format_of(path: str | Path) -> Format:
    """The format of an artifact.

    Raises:
        MissingFileError: nothing is there.
        ModelFileError: it is no artifact.
    """
    path = existing(path, "artifact")
    if not path.is_dir():
        regular(path, "artifact", ModelFileError)
    found = next((format for format in FORMATS if format.holds(path)), None)
    if found is None:
        known = ", ".join(suffix for format in FORMATS for suffix in format.suffixes)
        raise ModelFileError(f"{path} is no artifact: expected {known} or a SavedModel folder")
    return found


def kind_of(path: str | Path) -> Kind:
    """What a path is; the content is not trusted and not read beyond its first bytes.

    Raises:
        MissingFileError: nothing is there.
    """
    path = existing(path, "model")
    if not path.is_dir():
        regular(path, "model", ModelFileError)
    found = next((format.name for format in FORMATS if format.holds(path)), None)
    return found or (_kind_of_folder(path) if path.is_dir() else _kind_of_file(path))


def _kind_of_file(path: Path) -> Kind:
    if path.suffix in PICKLES:
        return "pickle"
    if path.suffix == ".tfopt":
        return "archive"
    if path.suffix == ".gguf":
        return "gguf"
    if path.suffix == ".bin":
        with path.open("rb") as file:
            return "pickle" if file.read(2) in (b"PK", b"\x80\x02") else "llama2c"
    return "unknown"


def _kind_of_folder(path: Path) -> Kind:
    if (path / "config.json").is_file():
        about = path / "metadata.json"
        return "keras_hub" if about.is_file() and b"keras_hub" in _first_bytes(about) else "hugging_face"
    if (path / "manifest.json").is_file() or (path / "state.json").is_file():
        return "run"
    if any(path.glob("*.manifest.json")):
        return "pack"
    return "llama2c" if llama2c_models(path) else "unknown"


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4096)


def llama2c_models(folder: Path) -> list[Path]:
    """The models of llama2.c in a folder, tokenizers excluded."""
    return [file for file in sorted(folder.glob("*.bin")) if not file.name.startswith("tok")]
