"""TFLite files in LiteRT (ai-edge-litert); TensorFlow is not loaded.

The interpreter is used rather than `CompiledModel`: on encoders it was 7 % faster, and it refuses a
damaged file with an error where `CompiledModel` ends the process.
"""

from pathlib import Path
from typing import Any

import numpy as np

from tfopt._base.cores import usable_cores
from tfopt._base.manifests import check_if_listed
from tfopt.data.text_facts import unpacked
from tfopt.errors import ModelFileError
from tfopt.runtime.decoder_predictor import DecoderPredictor
from tfopt.runtime.described import described_in
from tfopt.runtime.predictor import Predictor, Signature, StoredWeight
from tfopt.runtime.tflite_decoder import is_decoder_file
from tfopt.runtime.tflite_seq2seq import Seq2SeqPredictor, is_seq2seq_file
from tfopt.tflite.file import read_metadata, read_tflite
from tfopt.tflite.operands import check_operands


class TFLitePredictor(Predictor):
    """A `.tflite` file; every signature is allocated when it is first used."""

    format = "tflite"
    _refusals = (ValueError, RuntimeError)

    def _open(self, threads: int | None) -> list[Signature]:
        check_if_listed(self.path)
        members = read_metadata(self.path)
        self.described, self.members = described_in(members, self.path), unpacked(members, str(self.path))
        check_operands(self.path)
        try:
            self._interpreter = self._make_interpreter(threads or usable_cores())
            keys = list(self._interpreter.get_signature_list())
            self._runners = {key: self._interpreter.get_signature_runner(key) for key in keys}
            found = [self._signature(key) for key in keys]
        except (ValueError, RuntimeError) as error:  # also names that are not UTF-8, and numbers of no tensor
            raise ModelFileError(f"{self.path} is not a TFLite file that loads: {error}") from error
        if not found:
            raise ModelFileError(f"{self.path} has no signatures")
        return found

    def _make_interpreter(self, threads: int) -> Any:
        from ai_edge_litert.interpreter import Interpreter

        return Interpreter(str(self.path), num_threads=threads)

    def _signature(self, key: str) -> Signature:
        runner = self._runners[key]
        return Signature(
            key,
            {n: (tuple(map(int, d["shape"])), _given_type(d)) for n, d in runner.get_input_details().items()},
            {n: tuple(map(int, d["shape"])) for n, d in runner.get_output_details().items()},
        )

    def _run(self, signature: Signature, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        runner = self._runners[signature.key]
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


def predictor_of(path: Path) -> type[Predictor]:
    """What runs a file of this format: those that generate have runs of their own."""
    if is_seq2seq_file(path):
        return Seq2SeqPredictor
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
