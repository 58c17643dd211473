"""Loads a model from whatever a user points at."""

from pathlib import Path
from typing import Any

from tfopt import keras_api
from tfopt.errors import ModelFileError
from tfopt.files import existing
from tfopt.models.pretrained import from_pretrained


def load_any(path: str | Path) -> Any:
    """A Keras model from a `.keras` or `.h5` file, or from a Hugging Face folder.

    Raises:
        MissingFileError: nothing is there.
        ModelFileError: it is neither.
    """
    path = existing(path, "model")
    if path.is_file():
        return keras_api.load_model(path)
    if (path / "config.json").exists():
        return from_pretrained(path)
    raise ModelFileError(f"{path} is no model: expected a .keras or .h5 file, or a folder with config.json")
