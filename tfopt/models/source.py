"""Loads a model from whatever a user points at."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfopt._base.formats import kind_of
from tfopt._keras.custom import register_classes
from tfopt._keras.loading import load_model
from tfopt.errors import ModelFileError
from tfopt.models.checkpoints import PICKLE_ADVICE
from tfopt.models.gguf import read_gguf
from tfopt.models.keras_hub_presets import from_preset
from tfopt.models.llama2c import llama2c_files, read_llama2c
from tfopt.models.pretrained import from_pretrained


def load_any(path: str | Path, *, generation: str = "tf_keras", dropout: float | None = None,
             trust: bool = False, imports: Sequence[str] = ()) -> Any:  # fmt: skip
    """A Keras model from a `.keras`, `.h5` or `.gguf` file, a Hugging Face or KerasHub folder, or llama2.c's file.

    A tokenizer that lies beside a model stays with it, and so does the head that an encoder was trained for a task
    with.

    Args:
        path: the file or folder.
        generation: "tf_keras" or "keras"; a Keras file has its own.
        dropout: while training, of models that are built from a checkpoint.
        trust: run code that a Keras file holds or names; checkpoints hold none.
        imports: modules or files that define classes of a Keras file; they are run.

    Raises:
        MissingFileError: nothing is there.
        ModelFileError: it is neither.
    """
    path, kind = Path(path), kind_of(path)
    register_classes(imports)
    if kind == "pickle":
        raise ModelFileError(f"{path} is a pickle, which runs code when it is read; {PICKLE_ADVICE}")
    if kind == "hugging_face":
        return from_pretrained(path, generation, dropout=dropout, head="stored")
    if kind == "keras_hub":
        return from_preset(path, trust=trust)
    if kind == "gguf":
        return read_gguf(path, generation=generation, dropout=dropout)
    if kind == "llama2c" and path.is_file():
        return read_llama2c(path, generation=generation, dropout=dropout)
    if path.is_file():
        return load_model(path, trust=trust)
    model, tokenizer = llama2c_files(path)
    return read_llama2c(model, generation=generation, tokenizer=tokenizer, dropout=dropout)
