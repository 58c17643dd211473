"""SavedModel folders in TensorFlow."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt._base.manifests import check_if_listed
from tfopt.errors import ModelFileError
from tfopt.runtime.described import read_described, read_members
from tfopt.runtime.predictor import Predictor, Signature, StoredWeight
from tfopt.runtime.saved_graph import check_operations


def set_threads(threads: int | None) -> None:
    """Limits TensorFlow to so many threads per operation; None leaves it as it is.

    Once TensorFlow has started, their number is fixed for the process: it is kept, with a warning.
    """
    have = tf.config.threading.get_intra_op_parallelism_threads()
    if threads is None or have == threads:
        return
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    except RuntimeError:
        warnings.warn(
            f"threads={threads} comes too late: TensorFlow runs with {have or 'all cores'} in this process. Load "
            "the artifact before anything else uses TensorFlow, or run it in a process of its own",
            RuntimeWarning, stacklevel=5,
        )  # fmt: skip


class SavedModelPredictor(Predictor):
    """A SavedModel, plain or compiled with XLA."""

    format = "saved_model"
    _in_parallel = True
    _refusals = (tf.errors.InvalidArgumentError,)

    def _open(self, threads: int | None) -> list[Signature]:
        check_if_listed(self.path)
        check_operations(self.path, trust=self.trust)
        set_threads(threads)
        try:
            self._loaded = tf.saved_model.load(str(self.path))
        except Exception as error:  # what is damaged fails anywhere, with whatever its bytes lead to
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ModelFileError(f"{self.path} is not a SavedModel that loads: {reason}") from error
        functions = dict(self._loaded.signatures)
        if not functions:
            raise ModelFileError(f"{self.path} has no signatures")
        self._functions: dict[str, Any] = functions
        self.described, self.members = read_described(self.path), read_members(self.path)
        found = [_signature(key, function) for key, function in functions.items()]
        fixed = [s for s in found if s.is_fixed]
        # An XLA artifact has one signature per size; its flexible one would compile for every new shape.
        return fixed if len(fixed) < len(found) and fixed else found

    def _run(self, signature: Signature, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        tensors = {name: tf.constant(value) for name, value in inputs.items()}
        return {name: value.numpy() for name, value in self._functions[signature.key](**tensors).items()}

    def weights(self) -> list[StoredWeight]:
        found = getattr(self._loaded, "model_variables", [])
        return [
            StoredWeight(
                v.name, v.dtype.size * 8, v.numpy(), is_kernel="embeddings" not in v.name.rpartition("/")[2]
            )
            for v in found
            if len(v.shape) >= 2
        ]


def predictor_of(path: Path) -> type[Predictor]:
    """What runs a folder of this format."""
    return SavedModelPredictor


def _signature(key: str, function: Any) -> Signature:
    inputs = function.structured_input_signature[1]
    return Signature(
        key,
        {name: (tuple(spec.shape), np.dtype(spec.dtype.as_numpy_dtype)) for name, spec in inputs.items()},
        {name: _shape(spec) for name, spec in function.structured_outputs.items()},
    )


def _shape(spec: Any) -> tuple[int | None, ...]:
    return tuple(spec.shape) if spec.shape.rank is not None else ()
