"""Generates with a TFLite file of an encoder-decoder in LiteRT; TensorFlow is not loaded.

As in `tflite_decoder`, keys and values lie in arrays of ours, which the file reads where they are.
"""

import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfopt._base.manifests import check_if_listed
from tfopt._keras import extras
from tfopt.decoding.decoder import Decoder
from tfopt.decoding.seq2seq_config import Seq2SeqConfig
from tfopt.decoding.seq2seq_decoder import Seq2SeqDecoder, Seq2SeqSession
from tfopt.errors import InputError, ModelFileError
from tfopt.runtime.compiled import MISFITS, Make, compiled, first_line
from tfopt.runtime.described import Described
from tfopt.runtime.predictor import Predictor, Signature, StoredWeight
from tfopt.runtime.tflite_decoder import Stored, aligned
from tfopt.tflite.file import read_metadata, read_tflite

_MOST_LAYERS = 4096
_IDS, _MASK, _TARGET, _LOGITS = "input_ids", "attention_mask", "decoder_input_ids", "logits"


def is_seq2seq_file(path: Path) -> bool:
    """Whether a TFLite file holds an encoder-decoder."""
    return extras.SEQ2SEQ in read_metadata(path)


class TFLiteSeq2SeqDecoder(Seq2SeqDecoder):
    """A file that `export` wrote from an encoder-decoder.

    Args:
        path: the file.
        threads: threads of one run; by default all cores.
        weight_cache: a folder in which LiteRT keeps its own form of the weights; None keeps it in memory alone.

    Raises:
        MissingFileError: no such file.
        ModelFileError: it holds no encoder-decoder, or it is damaged.
    """

    def __init__(
        self, path: str | Path, threads: int | None = None, weight_cache: str | Path | None = None
    ) -> None:
        self.path = self.tflite = Path(path)
        check_if_listed(self.path)
        self.members = read_metadata(self.path)
        if extras.SEQ2SEQ not in self.members:
            raise ModelFileError(f"{path} holds no encoder-decoder; export one with tfopt")
        self.config = Seq2SeqConfig.from_json(self.members[extras.SEQ2SEQ])
        self.model, self.buffer = self._loaded(threads, weight_cache)
        self.turn = threading.Lock()  # a compiled model runs for one session after the other
        try:
            keys = list(self.model.get_signature_list())
            self.sizes = sorted(int(hit[1]) for key in keys if (hit := re.fullmatch(r"read_(\d+)", key)))
            if set(keys) != {f"{kind}_{size}" for kind in ("read", "decode") for size in self.sizes}:
                raise ModelFileError(f"{path}: its signatures are not those of an encoder-decoder: {keys[:4]}")
            self.context = self._slots()
        except (*MISFITS, IndexError) as error:
            raise ModelFileError(f"{path} is no TFLite file that generates: {first_line(error)}") from error
        self.source_room = self.sizes[-1]

    def _loaded(self, threads: int | None, weight_cache: str | Path | None) -> tuple[Any, Make]:
        return compiled(self.path, threads, weight_cache)

    def _slots(self) -> int:
        """Room of a target; checks that keys and values are those of the shape that the file states."""
        c, found = self.config, set()
        width = c.num_attention_heads * c.head_size
        names = {f"{kind}{part}_{i}" for i in range(c.decoder_layers) for part in ("key", "value")
                 for kind in ("", "cross_")} if c.decoder_layers <= _MOST_LAYERS else set()  # fmt: skip
        for size in self.sizes:
            details = self.model.get_input_tensor_details(f"decode_{size}")
            counts = {name: int(np.prod(detail["shape"])) for name, detail in details.items()}
            ours = {name: count for name, count in counts.items() if name not in ("ids", "start", "count")}
            crossed = {count for name, count in ours.items() if name.startswith("cross_")}
            if set(ours) != names or crossed != {size * width}:
                raise ModelFileError(f"{self.path}: keys and values of decode_{size} are not those of its shape")
            found |= {count for name, count in ours.items() if not name.startswith("cross_")}
        if len(found) != 1 or min(found) % width or not min(found):
            raise ModelFileError(
                f"{self.path}: caches of a target of sizes {sorted(found)[:4]} do not fit its shape"
            )
        return found.pop() // width

    @property
    def rows(self) -> int:
        return 1

    def open(self, pads: Sequence[int]) -> "TFLiteSeq2SeqSession":
        if len(pads) != 1:
            raise InputError(f"this runtime takes one text at a time, got {len(pads)}")
        return TFLiteSeq2SeqSession(self, pads)


class TFLiteSeq2SeqSession(Seq2SeqSession):
    """One target: its keys and values, and those of its source."""

    _decoder: TFLiteSeq2SeqDecoder

    def __init__(self, decoder: TFLiteSeq2SeqDecoder, pads: Sequence[int]) -> None:
        super().__init__(decoder, pads)
        self._stored: dict[str, Stored] = self._room(("key", "value"), decoder.context)
        self._bound: dict[str, Any] | None = None
        self._size = self._count = 0

    def _room(self, names: tuple[str, str], slots: int) -> dict[str, Stored]:
        c = self._decoder.config
        shape = (c.decoder_layers, c.num_attention_heads, slots, c.head_size)
        return {name: Stored(name, shape, narrow=False) for name in names}

    def _read(self, ids: np.ndarray, mask: np.ndarray) -> None:
        places = np.flatnonzero(mask[0])
        if (np.diff(places) != 1).any():
            raise InputError("the mask must be 1 on tokens that are next to each other, and 0 elsewhere")
        self._count = len(places)
        self._size = next(n for n in self._decoder.sizes if n >= self._count)
        source = aligned(self._size, np.int32)
        source[: self._count] = ids[0, places]
        outputs = self._run(f"read_{self._size}", {"ids": source, "count": _one(self._count)}, {})
        self._stored |= self._room(("cross_key", "cross_value"), self._size)
        for name in ("cross_key", "cross_value"):
            self._keep(name, outputs[f"{name}s"], slots=self._size, at=0)

    def _extend(self, ids: np.ndarray, every: bool) -> np.ndarray:
        if not self._stored:
            raise InputError("this session is closed; open another one")
        parts = []
        for at, token in enumerate(ids[0], self.length):
            given = {"ids": _one(token), "start": _one(at), "count": _one(self._count)}
            outputs = self._run(f"decode_{self._size}", given, self._buffers())
            for name in ("key", "value"):
                self._keep(name, outputs[f"{name}s"], slots=1, at=at)
            parts.append(outputs["logits"].copy())
        return np.stack(parts if every else parts[-1:])[None]

    def _keep(self, name: str, values: np.ndarray, slots: int, at: int) -> None:
        """Puts keys or values of every layer into their slots."""
        c = self._decoder.config
        try:
            shaped = values.reshape(c.decoder_layers, c.num_attention_heads, slots, c.head_size)
        except ValueError as error:
            raise ModelFileError(f"{self._decoder.path} gives {name}s of another shape: {error}") from error
        self._stored[name].write(shaped, at)

    def _buffers(self) -> dict[str, Any]:
        """Keys and values as the file reads them, by the name of its input."""
        if self._bound is None:
            make = self._decoder.buffer
            self._bound = {n: b for stored in self._stored.values() for n, b in stored.buffers(make).items()}
        return self._bound

    def _run(self, key: str, given: dict[str, np.ndarray], bound: Mapping[str, Any]) -> dict[str, np.ndarray]:
        model, make = self._decoder.model, self._decoder.buffer
        try:
            details, shapes = model.get_signature_list()[key], model.get_output_tensor_details(key)
            known = {**{name: make(value) for name, value in given.items()}, **bound}
            results = {name: aligned(int(np.prod(shapes[name]["shape"]))) for name in details["outputs"]}
            inputs = [known[name] for name in details["inputs"]]
            outputs = [make(results[name]) for name in details["outputs"]]
            with self._decoder.turn:
                model.run_by_index(model.get_signature_index(key), inputs, outputs)
        except MISFITS as error:  # a part of the file that is used for the first time, and does not fit
            raise ModelFileError(f"{self._decoder.path} does not run: {first_line(error)}") from error
        return results

    @property
    def cache_bytes(self) -> int:
        return sum(stored.nbytes for stored in self._stored.values())

    def close(self) -> None:
        self._stored, self._bound = {}, None


class Seq2SeqPredictor(Predictor):
    """The file behind the interface of all artifacts: sources and targets in, logits at every target token out."""

    format = "tflite"
    _in_parallel = True  # every text has a session of its own, and the decoder takes turns

    decoder: TFLiteSeq2SeqDecoder

    def _open(self, threads: int | None) -> list[Signature]:
        self.decoder = self._make(threads)
        vocab, shape = self.decoder.config.vocab_size, (None, None)
        self.described = Described({_IDS: vocab, _TARGET: vocab}, {_MASK: (_IDS,)})
        inputs = {name: (shape, np.dtype(np.int32)) for name in (_IDS, _MASK, _TARGET)}
        return [Signature("generate", inputs, {_LOGITS: (None, None, vocab)})]  # type: ignore[arg-type]

    @property
    def lengths(self) -> tuple[int, ...]:
        return ()

    def _run(self, signature: Signature, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        rows = zip(inputs[_IDS], inputs[_MASK], inputs[_TARGET], strict=True)
        return {_LOGITS: np.stack([self._row(*row) for row in rows])}

    def _row(self, ids: np.ndarray, mask: np.ndarray, target: np.ndarray) -> np.ndarray:
        with self.decoder.open([0]) as session:
            session.read(ids[None], mask[None])
            return session.score(target[None])[0]

    def _make(self, threads: int | None) -> TFLiteSeq2SeqDecoder:
        return TFLiteSeq2SeqDecoder(self.path, threads)

    def make_decoder(self) -> Decoder:
        return self.decoder

    def weights(self) -> list[StoredWeight]:
        file = read_tflite(self.path)
        return [StoredWeight(c.name, c.bits, c.data, is_kernel=c.is_kernel) for c in file.constants if c.is_matrix]


def _one(value: int) -> np.ndarray:
    found = aligned(1, np.int32)
    found[0] = value
    return found
