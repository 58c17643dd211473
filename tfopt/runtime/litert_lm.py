"""The model of a `.litertlm` file in LiteRT, without LiteRT-LM: to compare it, and to generate with it.

A session's keys and values lie in buffers that every signature reads and writes in place, as LiteRT-LM has it.
"""

import shutil
import tempfile
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from tfopt._base.manifests import check_if_listed
from tfopt._base.members import TOKENIZER
from tfopt._keras import extras
from tfopt.decoding.config import MASKED, CausalLMConfig
from tfopt.decoding.decoder import OneTextDecoder, Session
from tfopt.decoding.signatures import DECODE, IDS, LOGITS, MASK, POSITIONS, cache_names, prefill_size
from tfopt.errors import InputError, ModelFileError
from tfopt.runtime.compiled import MISFITS, compiled, first_line
from tfopt.runtime.decoder_predictor import DecoderPredictor
from tfopt.tflite.file import read_metadata
from tfopt.tflite.litert_lm_file import read_litert_lm


class LiteRtLmPredictor(DecoderPredictor):
    """Token ids in, logits at every token out."""

    format = "litertlm"

    def _make(self, threads: int | None) -> "LiteRtLmDecoder":
        return LiteRtLmDecoder(self.path, threads)


def predictor_of(path: Path) -> type[LiteRtLmPredictor]:
    """The class that runs a file."""
    return LiteRtLmPredictor


class LiteRtLmDecoder(OneTextDecoder):
    """A `.litertlm` file that `export` wrote.

    Args:
        path: the file.
        threads: threads of one run; by default all cores.

    Attributes:
        members: what travels in it: shape, tokenizer and chat template.
        tflite: its TFLite file, for as long as the decoder lives.

    Raises:
        MissingFileError: no such file.
        ModelFileError: it is damaged, or holds no model of tfopt's.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        self.path = Path(path)
        check_if_listed(self.path)
        container = read_litert_lm(self.path)
        folder = tempfile.mkdtemp(prefix="tfopt-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.tflite = container.decoder(Path(folder, "model.tflite"))
        try:
            self.members = read_metadata(self.tflite)
            self.model, _ = compiled(self.tflite, threads)
        except ModelFileError as error:  # which names a copy
            raise ModelFileError(str(error).replace(str(self.tflite), f"the TFLite file in {path}")) from error
        if extras.CONFIG not in self.members:
            raise ModelFileError(f"{path} holds no causal language model of tfopt; LiteRT-LM itself may run it")
        tokenizer = container.tokenizer()
        if tokenizer is not None:
            self.members[TOKENIZER] = tokenizer
        self.config = CausalLMConfig.from_json(self.members[extras.CONFIG])
        self.turn = threading.Lock()  # a compiled model runs for one session after the other
        try:
            sizes = ((prefill_size(key), key) for key in self.model.get_signature_list())
            self.prefills = sorted((size, key) for size, key in sizes if size is not None)
            if not self.prefills:
                raise ModelFileError(f"{path} holds a TFLite file without a signature prefill_N")
            self.context = int(self.model.get_input_tensor_details(DECODE)[MASK]["shape"][-1])
            self.names = cache_names(self.config.num_hidden_layers)
            self.slot = self.config.key_value_heads * self.config.head_size
            self.begin().close()  # a file whose parts do not fit shows here
        except MISFITS as error:
            raise ModelFileError(f"{path} holds no TFLite file that generates: {first_line(error)}") from error

    def begin(self) -> "LiteRtLmSession":
        return LiteRtLmSession(self)


class LiteRtLmSession(Session):
    """One text: its keys and values."""

    _decoder: LiteRtLmDecoder

    def __init__(self, decoder: LiteRtLmDecoder) -> None:
        super().__init__(decoder)
        model, size = decoder.model, decoder.slot * decoder.context
        self._caches = {name: model.create_input_buffer_by_name(DECODE, name) for name in decoder.names}
        for cache in self._caches.values():
            cache.write(np.zeros(size, np.float32))  # what no token sees is still multiplied, by zero
        self._bound: dict[str, tuple[Any, ...]] = {}

    def _bind(self, key: str) -> tuple[Any, ...]:
        if key not in self._bound:
            model = self._decoder.model
            names = model.get_signature_list()[key]
            inputs = {
                name: self._caches.get(name) or model.create_input_buffer_by_name(key, name)
                for name in names["inputs"]
            }
            outputs = {
                name: self._caches.get(name) or model.create_output_buffer_by_name(key, name)
                for name in names["outputs"]
            }
            self._bound[key] = (model.get_signature_index(key), inputs, outputs)
        return self._bound[key]

    def _run(self, key: str, tokens: np.ndarray, at: int, size: int) -> np.ndarray | None:
        """Runs a signature that takes `size` tokens on some, from slot `at` on."""
        decoder, places = self._decoder, np.zeros(size, np.int32)
        padded, mask = np.zeros(size, np.int32), np.full((size, decoder.context), MASKED, np.float32)
        padded[: len(tokens)] = tokens
        places[: len(tokens)] = np.arange(at, at + len(tokens))
        mask[: len(tokens)][np.arange(decoder.context) <= places[: len(tokens), None]] = 0
        try:
            index, inputs, outputs = self._bind(key)
            for name, value in ((IDS, padded), (POSITIONS, places), (MASK, mask.reshape(-1))):
                inputs[name].write(value)
            with decoder.turn:
                decoder.model.run_by_index(index, list(inputs.values()), list(outputs.values()))
            if LOGITS not in outputs:
                return None
            return np.asarray(outputs[LOGITS].read(decoder.config.vocab_size, np.float32))
        except MISFITS as error:  # a part of the file that is used for the first time, and does not fit
            raise ModelFileError(f"{decoder.path} does not run: {first_line(error)}") from error

    def _extend(self, ids: np.ndarray, every: bool) -> np.ndarray:
        if not self._caches:
            raise InputError("this session is closed; open another one")
        tokens, at, found = ids[0], self.length, []
        while not every and len(tokens) > 1:
            size, key = next(
                (p for p in self._decoder.prefills if p[0] >= len(tokens) - 1), self._decoder.prefills[-1]
            )
            count = min(size, len(tokens) - 1)
            self._run(key, tokens[:count], at, size=size)
            tokens, at = tokens[count:], at + count
        for place, token in enumerate(tokens):
            logits = self._run(DECODE, np.array([token]), at + place, size=1)
            assert logits is not None
            found.append(logits)
        return np.stack(found)[None]

    @property
    def cache_bytes(self) -> int:
        return 4 * self._decoder.slot * self._decoder.context * len(self._caches)

    def close(self) -> None:
        self._caches, self._bound = {}, {}
