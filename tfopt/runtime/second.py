"""A second runtime for artifacts, to compare the first with: other kernels, by other hands."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfopt._base.cores import usable_cores
from tfopt.errors import InputError, ModelFileError
from tfopt.runtime.compiled import Make
from tfopt.runtime.decoder_predictor import DecoderPredictor
from tfopt.runtime.predictor import Predictor
from tfopt.runtime.tflite import TFLitePredictor, predictor_of
from tfopt.runtime.tflite_decoder import TFLiteDecoder
from tfopt.runtime.tflite_seq2seq import Seq2SeqPredictor, TFLiteSeq2SeqDecoder
from tfopt.tflite.file import read_tflite

_MOST_BYTES = 1 << 29  # of a file that is held a second time


def _interpreter(path: Path, threads: int | None) -> Any:
    """TensorFlow's own interpreter, with its built-in kernels instead of a delegate's.

    Those take the scales of blocks for scales of rows, without a word; files in blocks keep the delegate.
    """
    import tensorflow as tf

    kinds = tf.lite.experimental.OpResolverType
    in_blocks = any(c.scale is not None and c.scale.ndim == 2 for c in read_tflite(path).constants)
    kernels = kinds.AUTO if in_blocks else kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    return tf.lite.Interpreter(
        str(path), num_threads=threads or usable_cores(), experimental_op_resolver_type=kernels
    )


class TensorFlowLitePredictor(TFLitePredictor):
    """A `.tflite` file in TensorFlow's interpreter."""

    def _make_interpreter(self, threads: int) -> Any:
        return _interpreter(self.path, threads)


class _Interpreted:
    """That interpreter with the methods of LiteRT's `CompiledModel` that decoders call; arrays are its buffers."""

    def __init__(self, path: Path, threads: int | None) -> None:
        self._interpreter = _interpreter(path, threads)
        self._runners: dict[str, Any] = {}

    def _runner(self, key: str) -> Any:
        if key not in self._runners:
            self._runners[key] = self._interpreter.get_signature_runner(key)
        return self._runners[key]

    def get_signature_list(self) -> Any:
        return self._interpreter.get_signature_list()

    def get_signature_index(self, key: str) -> str:
        return key

    def get_input_tensor_details(self, key: str) -> Any:
        return self._runner(key).get_input_details()

    def get_output_tensor_details(self, key: str) -> Any:
        return self._runner(key).get_output_details()

    def run_by_index(self, key: str, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None:
        names, details = self.get_signature_list()[key], self.get_input_tensor_details(key)
        given = zip(names["inputs"], inputs, strict=True)
        found = self._runner(key)(**{name: value.reshape(details[name]["shape"]) for name, value in given})
        for name, target in zip(names["outputs"], outputs, strict=True):
            target[:] = found[name].reshape(-1)


class _Decoder(TFLiteDecoder):
    def _loaded(self, threads: int | None, weight_cache: str | Path | None) -> tuple[Any, Make]:
        return _Interpreted(self.path, threads), np.asarray


class _Seq2SeqDecoder(TFLiteSeq2SeqDecoder):
    def _loaded(self, threads: int | None, weight_cache: str | Path | None) -> tuple[Any, Make]:
        return _Interpreted(self.path, threads), np.asarray


class _DecoderPredictor(DecoderPredictor):
    def _make(self, threads: int | None) -> Any:
        return _Decoder(self.path, threads)


class _Seq2SeqPredictor(Seq2SeqPredictor):
    def _make(self, threads: int | None) -> TFLiteSeq2SeqDecoder:
        return _Seq2SeqDecoder(self.path, threads)


_SECOND: dict[type[Predictor], type[Predictor]] = {
    TFLitePredictor: TensorFlowLitePredictor,
    DecoderPredictor: _DecoderPredictor,
    Seq2SeqPredictor: _Seq2SeqPredictor,
}


def run_second(path: Path, inputs: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray] | None, str]:
    """Runs an artifact in a second runtime.

    Returns:
        Outputs by name and the runtime's name; None and the reason where it does not take the artifact.
    """
    if path.suffix == ".litertlm":
        return None, "LiteRT-LM, by what it says"
    if path.suffix != ".tflite":
        return None, "none for this format"
    if path.stat().st_size > _MOST_BYTES:
        return None, f"not asked for with files of more than {_MOST_BYTES >> 20} MiB"
    first = predictor_of(path)
    if first is not TFLitePredictor:  # its kernels take minutes for what others do in seconds
        inputs = {name: value[:1] for name, value in inputs.items()}
    try:
        return _SECOND[first](path).predict(inputs), "TensorFlow Lite"
    except (InputError, ModelFileError) as error:  # operators that only LiteRT has
        return None, f"TensorFlow Lite does not take the file: {str(error)[:120]}"
