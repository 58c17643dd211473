"""Reads Hugging Face folders: `config.json` and `model.safetensors`."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tfopt import keras_api
from tfopt.errors import InputError, ModelFileError
from tfopt.files import existing
from tfopt.models.bert import BertConfig, bert

# Tensors that public BERT checkpoints carry and an encoder does not need.
_UNUSED = ("pooler.", "cls.", "classifier.", "embeddings.position_ids")


def from_pretrained(
    folder: str | Path,
    generation: str = "tf_keras",
    num_labels: int | None = None,
    pooling: Literal["mean", "cls"] = "mean",
    dropout: float | None = None,
) -> Any:
    """Builds the model that a Hugging Face folder describes and gives it the stored weights.

    Args:
        folder: holds `config.json` and `model.safetensors`.
        generation: "tf_keras" or "keras".
        num_labels: None for the encoder alone, else a classifier whose head has fresh weights.
        pooling: for a classifier, "mean" or "cls".
        dropout: overrides the checkpoint's dropout while training, in [0, 1).

    Raises:
        MissingFileError: the folder or one of its files is missing.
        ModelFileError: an unknown architecture, or a missing, extra or misshapen tensor (named).
    """
    folder = existing(folder, "model folder")
    config = read_config(folder)
    if dropout is not None:
        config = dataclasses.replace(config, hidden_dropout_prob=dropout)
    model = bert(config, num_labels, pooling, generation)
    _assign(model, config, folder / "model.safetensors")
    return model


def read_config(folder: Path) -> BertConfig:
    """The encoder's shape from `config.json`."""
    path = existing(folder / "config.json", "model configuration")
    try:
        raw = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ModelFileError(f"{path} is not JSON: {error}") from error
    if not isinstance(raw, dict) or raw.get("model_type") != "bert":
        kind = raw.get("model_type") if isinstance(raw, dict) else None
        raise ModelFileError(f"{path}: architecture {kind!r} is not supported; supported: 'bert'")
    if raw.get("position_embedding_type", "absolute") != "absolute":
        raise ModelFileError(f"{path}: only absolute positions, got {raw['position_embedding_type']!r}")
    names = {field.name for field in dataclasses.fields(BertConfig)}
    try:
        return BertConfig(**{k: v for k, v in raw.items() if k in names})
    except (TypeError, InputError) as error:
        raise ModelFileError(f"{path}: {error}") from error


def check_weights(folder: Path, config: BertConfig) -> None:
    """Checks names and shapes of the stored tensors, reading no more than the file's header.

    Raises:
        ModelFileError: a missing, extra or misshapen tensor, or an unreadable file.
    """
    with _opened(folder / "model.safetensors") as (tensors, stored):
        _check_names({name for name, _ in _tensor_names(config)}, set(stored), folder / "model.safetensors")
        shape = tuple(tensors.get_slice(stored["embeddings.word_embeddings.weight"]).get_shape())
    if shape != (config.vocab_size, config.hidden_size):
        raise ModelFileError(
            f"{folder}: the word table has shape {shape}, the configuration asks for "
            f"{(config.vocab_size, config.hidden_size)}"
        )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """The opened file, and the stored name of each tensor by the name it has without a prefix."""
    from safetensors import SafetensorError, safe_open

    existing(path, "model weights")
    try:
        with safe_open(path, framework="numpy") as tensors:
            yield tensors, {name.removeprefix("bert."): name for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{path} is not a readable safetensors file: {error}") from error


def _assign(model: Any, config: BertConfig, path: Path) -> None:
    variables = {weight.path: weight.variable for weight in keras_api.weights(model)}
    values = {}
    with _opened(path) as (tensors, stored):
        expected = dict(_tensor_names(config))
        _check_names(set(expected), set(stored), path)
        for name, (target, transpose) in expected.items():
            value = tensors.get_tensor(stored[name]).astype(np.float32)
            value = value.T if transpose else value
            if value.shape != tuple(variables[target].shape):
                raise ModelFileError(
                    f"{path}: tensor {stored[name]!r} has shape {value.shape}, "
                    f"the configuration asks for {tuple(variables[target].shape)}"
                )
            values[target] = value
    for target, value in values.items():
        variables[target].assign(value)


def _check_names(expected: set[str], stored: set[str], path: Path) -> None:
    missing = sorted(expected - stored)
    extra = sorted(n for n in stored - expected if not n.startswith(_UNUSED))
    if missing or extra:
        parts = [f"lacks {missing[0]!r}" if missing else "", f"has unknown {extra[0]!r}" if extra else ""]
        counts = f"({len(missing)} missing, {len(extra)} unknown)"
        raise ModelFileError(f"{path} {' and '.join(p for p in parts if p)} {counts}")


def _tensor_names(config: BertConfig) -> Iterator[tuple[str, tuple[str, bool]]]:
    """Pairs of checkpoint tensor and (path of our weight, whether it must be transposed)."""
    for table in ("word_embeddings", "token_type_embeddings", "position_embeddings"):
        yield f"embeddings.{table}.weight", (f"{table}/embeddings", False)
    yield from _norm("embeddings.LayerNorm", "embeddings_norm")
    for i in range(config.num_hidden_layers):
        theirs, ours = f"encoder.layer.{i}", f"layer_{i}"
        for part in ("query", "key", "value"):
            yield from _dense(f"{theirs}.attention.self.{part}", f"{ours}_attention_{part}")
        yield from _dense(f"{theirs}.attention.output.dense", f"{ours}_attention_output")
        yield from _norm(f"{theirs}.attention.output.LayerNorm", f"{ours}_attention_norm")
        yield from _dense(f"{theirs}.intermediate.dense", f"{ours}_intermediate")
        yield from _dense(f"{theirs}.output.dense", f"{ours}_output")
        yield from _norm(f"{theirs}.output.LayerNorm", f"{ours}_output_norm")


def _dense(theirs: str, ours: str) -> Iterator[tuple[str, tuple[str, bool]]]:
    yield f"{theirs}.weight", (f"{ours}/kernel", True)
    yield f"{theirs}.bias", (f"{ours}/bias", False)


def _norm(theirs: str, ours: str) -> Iterator[tuple[str, tuple[str, bool]]]:
    yield f"{theirs}.weight", (f"{ours}/gamma", False)
    yield f"{theirs}.bias", (f"{ours}/beta", False)
