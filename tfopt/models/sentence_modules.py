"""The modules that sentence-transformers lays beside an encoder: pooling, dense layers, a norm.

https://sbert.net/docs/package_reference/sentence_transformer/modules.html; `modules.json` lists them by folder.
"""

from pathlib import Path
from typing import Any

import numpy as np

from tfopt._base.files import write_json
from tfopt._base.foreign import inside, read_json
from tfopt.errors import ModelFileError
from tfopt.models.assign import assign
from tfopt.models.checkpoints import opened, write_tensors
from tfopt.models.families.base import Entry

_LIST = "modules.json"
_WEIGHT = "linear.weight"
_PACKAGE = "sentence_transformers.models"
_IDENTITY = "torch.nn.modules.linear.Identity"
_WIDEST = 2**20
# Older files have a switch for each kind, newer ones its name.
_POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}


def dense_folders(folder: Path, pooling: str) -> list[Path]:
    """The folders of the dense layers behind the pooled vector, first to last; none without a list.

    Args:
        folder: with the encoder in it.
        pooling: that the model is built with, "mean" or "cls".

    Raises:
        ModelFileError: a module that is not known, a layer with a bias or an activation, or another pooling.
    """
    if not (folder / _LIST).is_file():
        return []
    listed = read_json(folder / _LIST, "list of modules", error=ModelFileError)
    found: list[Path] = []
    for module in listed if isinstance(listed, list) else [None]:
        path, kind = (module.get(k) for k in ("path", "type")) if isinstance(module, dict) else (None, None)
        if not isinstance(path, str) or not isinstance(kind, str):
            raise ModelFileError(f"{folder / _LIST} must list modules, each with a path and a type")
        place = inside(folder, path, str(folder / _LIST), error=ModelFileError) if path else folder
        name = kind.rpartition(".")[2]
        if name == "Pooling":
            _check_pooling(place, pooling)
        elif name == "Dense":
            found.append(place)
        elif name not in ("Transformer", "Normalize"):
            raise ModelFileError(
                f"{folder / _LIST}: module {kind!r} is not supported; Pooling, Dense and Normalize are"
            )
    return found


def widths(folders: list[Path]) -> tuple[int, ...]:
    """Units of dense layers.

    Raises:
        ModelFileError: a layer with a bias or an activation, or of no width.
    """
    found = []
    for folder in folders:
        raw, where = read_json(folder / "config.json", "dense layer", error=ModelFileError), folder / "config.json"
        units = raw.get("out_features") if isinstance(raw, dict) else None
        if not isinstance(units, int) or not 0 < units <= _WIDEST:
            raise ModelFileError(f"{where}: out_features must be from 1 to {_WIDEST:,}, got {str(units)[:40]}")
        if raw.get("bias", True) or raw.get("activation_function") != _IDENTITY or raw.get("use_residual"):
            raise ModelFileError(f"{where}: only layers without bias, activation and residual are supported")
        found.append(units)
    return tuple(found)


def assign_dense(model: Any, folders: list[Path]) -> None:
    """Gives a model of the head "embedding" its dense layers."""
    for number, folder in enumerate(folders):
        with opened(folder) as tensors:
            if set(tensors.shapes) != {_WEIGHT}:
                raise ModelFileError(f"{folder} must hold {_WEIGHT!r} alone, it holds {sorted(tensors.shapes)[:3]}")
            entry = Entry(_WEIGHT, (f"embedding_dense_{number}/kernel",), True)
            assign(model, [entry], tensors, names={_WEIGHT: _WEIGHT}, where=folder)


def write_modules(folder: Path, kernels: list[np.ndarray], *, width: int, pooling: str, dtype: str) -> list[Path]:
    """Writes the modules of the head "embedding": the pooling, dense layers of these kernels, and the norm.

    Args:
        folder: with the encoder in it.
        kernels: (inputs, units) of each layer.
        width: of the encoder.
        pooling: "mean" or "cls".
        dtype: of the stored kernels.
    """
    files = [write_json(_made(folder / "1_Pooling") / "config.json", {
        "word_embedding_dimension": width, **{mode: pooling == ours for mode, ours in _POOLINGS.items()},
    })]  # fmt: skip
    listed = [("", "Transformer"), ("1_Pooling", "Pooling")]
    for number, kernel in enumerate(kernels, 2):
        inner = _made(folder / f"{number}_Dense")
        config = {"in_features": kernel.shape[0], "out_features": kernel.shape[1], "bias": False}
        config["activation_function"] = _IDENTITY
        files += write_tensors(
            inner, {_WEIGHT: np.ascontiguousarray(kernel.T)}, config, shard_bytes=2**62, dtype=dtype
        )
        listed.append((inner.name, "Dense"))
    last = _made(folder / f"{len(kernels) + 2}_Normalize")
    listed.append((last.name, "Normalize"))
    rows = [
        {"idx": i, "name": str(i), "path": path, "type": f"{_PACKAGE}.{kind}"}
        for i, (path, kind) in enumerate(listed)
    ]
    return [*files, write_json(folder / _LIST, rows)]


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _check_pooling(folder: Path, pooling: str) -> None:
    content = read_json(folder / "config.json", "pooling", error=ModelFileError)
    raw = content if isinstance(content, dict) else {}
    modes = [name for name, on in raw.items() if name.startswith("pooling_mode_") and on]
    said = modes or raw.get("pooling_mode")
    found = _POOLINGS.get(modes[0]) if len(modes) == 1 else raw.get("pooling_mode")
    if found not in _POOLINGS.values():
        known = ", ".join(map(repr, _POOLINGS.values()))
        raise ModelFileError(f"{folder / 'config.json'}: pooling must be one of {known}, got {str(said)[:80]}")
    if found != pooling:
        raise ModelFileError(f"{folder / 'config.json'} says pooling {found!r}, and {pooling!r} was asked for")
