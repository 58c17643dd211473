"""A file that generates, behind the interface of all artifacts: token ids in, logits at every token out."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tfopt.decoding.decoder import Decoder
from tfopt.errors import InputError
from tfopt.runtime.described import Described
from tfopt.runtime.predictor import Predictor, Signature, StoredWeight
from tfopt.runtime.tflite_decoder import TFLiteDecoder
from tfopt.tflite.file import read_tflite

_IDS, _MASK, _LOGITS = "input_ids", "attention_mask", "logits"


class DecoderPredictor(Predictor):
    """One text after the other; padding at either end gets logits of zero."""

    format = "tflite"
    _in_parallel = True  # every text has a session of its own, and the decoder takes turns

    decoder: Any

    def _open(self, threads: int | None) -> list[Signature]:
        self.decoder = self._make(threads)
        shape: tuple[int | None, ...] = (None, None)
        vocab = self.decoder.config.vocab_size
        self.described = Described({_IDS: vocab}, {_MASK: (_IDS,)})
        inputs: dict[str, tuple[tuple[int | None, ...], np.dtype]] = {
            name: (shape, np.dtype(np.int32)) for name in (_IDS, _MASK)
        }
        return [Signature("generate", inputs, {_LOGITS: (None, None, vocab)})]

    @property
    def lengths(self) -> tuple[int, ...]:
        return ()

    def _run(self, signature: Signature, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {_LOGITS: np.stack([self._row(*row, thorough=False) for row in _rows(inputs)])}

    def _make(self, threads: int | None) -> Any:
        return TFLiteDecoder(self.path, threads)

    def make_decoder(self) -> Decoder:
        return self.decoder

    def try_out(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Logits of each last token come from a second pass, by the signatures that answer prompts."""
        return {_LOGITS: np.stack([self._row(*row, thorough=True) for row in _rows(self._named(inputs))])}

    def _row(self, ids: np.ndarray, mask: np.ndarray, thorough: bool) -> np.ndarray:
        found = np.zeros((len(ids), self.decoder.config.vocab_size), np.float32)
        places = np.flatnonzero(mask)
        if not len(places) or (np.diff(places) != 1).any():
            raise InputError("attention_mask must be 1 on tokens that are next to each other, and 0 elsewhere")
        tokens = ids[places][None]
        with self.decoder.open([0]) as session:
            found[places] = session.extend(tokens, every=True)[0]
        if thorough:
            with self.decoder.open([0]) as session:
                found[places[-1]] = session.extend(tokens)[0, -1]
        return found

    def weights(self) -> list[StoredWeight]:
        file = read_tflite(self.decoder.tflite)
        return [StoredWeight(c.name, c.bits, c.data, is_kernel=c.is_kernel) for c in file.constants if c.is_matrix]


def _rows(inputs: Mapping[str, np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(zip(inputs[_IDS], inputs[_MASK], strict=True))
