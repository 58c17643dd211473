"""TFLite files in LiteRT (ai-edge-litert); TensorFlow is not loaded.

The interpreter is used rather than `CompiledModel`: on encoders it was 7 % faster, and it refuses a
damaged file with an error where `CompiledModel` ends the process.
"""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tfopt._base.cores import usable_cores
from tfopt.errors import ModelFileError
from tfopt.runtime.decoder_predictor import DecoderPredictor
from tfopt.runtime.predictor import Predictor, Signature, StoredWeight
from tfopt.runtime.tflite_decoder import is_decoder_file
from tfopt.tflite.file import read_tflite


class TFLitePredictor(Predictor):
    """A `.tflite` file; every signature is allocated when it is first used.

    Threads that call it at once get an interpreter each, at most one for each core: with two on two cores, answers
    took 0.55 to 0.8 of the time that they took behind a lock (`benchmarks/checks.py`). Each further one runs on one
    thread, and takes memory for its activations and for its form of the weights; it stays.
    """

    format = "tflite"
    _in_parallel = True
    _refusals = (ValueError, RuntimeError)

    def _open(self, threads: int | None) -> list[Signature]:
        self._change = threading.Condition()
        runners = self._runners(threads or usable_cores())
        if not runners:
            raise ModelFileError(f"{self.path} has no signatures")
        self._free, self._made = {0: runners}, 1
        return [_signature(key, runner) for key, runner in runners.items()]

    def _runners(self, threads: int) -> dict[str, Any]:
        """The signatures of another interpreter."""
        from ai_edge_litert.interpreter import Interpreter

        try:
            interpreter = Interpreter(str(self.path), num_threads=threads)
            return {key: interpreter.get_signature_runner(key) for key in interpreter.get_signature_list()}
        except (ValueError, RuntimeError) as error:
            raise ModelFileError(f"{self.path} is not a TFLite file that loads: {error}") from error

    @contextlib.contextmanager
    def _borrowed(self) -> Iterator[dict[str, Any]]:
        """The first interpreter that is free, which has most threads; or a new one; or the next one given back."""
        with self._change:
            while not self._free and self._made >= usable_cores():
                self._change.wait()
            number = min(self._free, default=self._made)
            runners = self._free.pop(number, None)
            self._made = max(self._made, number + 1)
        try:
            if runners is None:
                runners = self._runners(1)
            yield runners
        finally:
            with self._change:
                if runners is not None:
                    self._free[number] = runners
                self._change.notify()

    def _run(self, signature: Signature, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        with self._borrowed() as runners:
            runner = runners[signature.key]
            details = runner.get_input_details()
            outputs = runner(**{name: _to_integers(value, details[name]) for name, value in inputs.items()})
            details = runner.get_output_details()
            return {name: _to_floats(value, details[name]) for name, value in outputs.items()}

    def weights(self) -> list[StoredWeight]:
        return [
            StoredWeight(c.name, c.bits, c.data, is_kernel=c.is_kernel)
            for c in read_tflite(self.path).constants
            if c.is_matrix
        ]


def _signature(key: str, runner: Any) -> Signature:
    return Signature(
        key,
        {n: (tuple(map(int, d["shape"])), _given_type(d)) for n, d in runner.get_input_details().items()},
        {n: tuple(map(int, d["shape"])) for n, d in runner.get_output_details().items()},
    )


def predictor_of(path: Path) -> type[Predictor]:
    """What runs a file of this format: those that generate have runs of their own."""
    return DecoderPredictor if is_decoder_file(path) else TFLitePredictor


def _is_quantized(detail: dict[str, Any]) -> bool:
    return np.issubdtype(detail["dtype"], np.integer) and detail["quantization"][0] != 0


def _given_type(detail: dict[str, Any]) -> np.dtype:
    """What the caller gives: float also where the file takes integers."""
    return np.dtype(np.float32) if _is_quantized(detail) else np.dtype(detail["dtype"])


def _to_integers(value: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    if not _is_quantized(detail):
        return value
    scale, zero = detail["quantization"]
    limits = np.iinfo(detail["dtype"])
    return np.clip(np.rint(value / scale) + zero, limits.min, limits.max).astype(detail["dtype"])


def _to_floats(value: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    if not _is_quantized(detail):
        return value
    scale, zero = detail["quantization"]
    return ((value.astype(np.float32) - zero) * scale).astype(np.float32)
