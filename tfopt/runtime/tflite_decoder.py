"""Generates with a TFLite file in LiteRT; TensorFlow is not loaded.

`CompiledModel` runs on memory of the host: keys and values lie in arrays of ours that every signature of the same
number of slots is bound to, and after each run the new ones are written into their slots. Nothing else of a cache
ever moves; only a text that outgrows its slots is copied once, into the next larger ones.
"""

import threading
from pathlib import Path
from typing import Any

import numpy as np

from tfopt._base.manifests import check_if_listed
from tfopt._keras import extras
from tfopt.decoding.config import CausalLMConfig
from tfopt.decoding.decoder import OneTextDecoder, Session
from tfopt.decoding.signatures import DecoderSignature, read_signature
from tfopt.errors import InputError, ModelFileError
from tfopt.runtime.compiled import MISFITS, Make, compiled, first_line
from tfopt.tflite.file import read_metadata

_ALIGNMENT = 64


def is_decoder_file(path: Path) -> bool:
    """Whether a TFLite file generates."""
    return extras.CONFIG in read_metadata(path)


def aligned(size: int, dtype: type = np.float32) -> np.ndarray:
    """Zeros that LiteRT can use where they lie; it copies what is not aligned, without a word."""
    width = np.dtype(dtype).itemsize
    raw = np.zeros(size * width + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size * width].view(dtype)


def aligned_parts(shape: tuple[int, ...], dtype: type = np.float32) -> np.ndarray:
    """Zeros of a shape whose parts along the first axis each begin aligned."""
    size, width = int(np.prod(shape[1:])), np.dtype(dtype).itemsize
    padded = -(-size * width // _ALIGNMENT) * _ALIGNMENT // width
    whole = aligned(shape[0] * padded, dtype)
    inner = np.zeros(shape[1:], dtype).strides
    return np.lib.stride_tricks.as_strided(whole, shape, (padded * width, *inner))


class Stored:
    """Keys or values of every layer, in float or as int8 with a scale for each slot of each head.

    Args:
        name: "key" or "value".
        shape: (layers, heads, slots, head_dim).
        narrow: int8.
    """

    def __init__(self, name: str, shape: tuple[int, ...], narrow: bool) -> None:
        self.arrays = {name: aligned_parts(shape, np.int8 if narrow else np.float32)}
        if narrow:
            self.arrays[f"{name}_scale"] = aligned_parts(shape[:-1])
        self._name, self._narrow = name, narrow

    def write(self, new: np.ndarray, at: int) -> None:
        """Puts (layers, heads, new, head_dim) float values into the slots from `at` on."""
        end = at + new.shape[2]
        if self._narrow:
            scale = np.maximum(np.abs(new).max(-1) / 127, 1e-12)
            self.arrays[f"{self._name}_scale"][:, :, at:end] = scale
            new = np.rint(new / scale[..., None])
        self.arrays[self._name][:, :, at:end] = new

    def copy_from(self, other: "Stored", length: int) -> None:
        """Takes over the first slots of another."""
        for name, array in self.arrays.items():
            array[:, :, :length] = other.arrays[name][:, :, :length]

    def buffers(self, make: Any) -> dict[str, Any]:
        """Buffers of LiteRT by the name of the input that they are bound to."""
        return {
            f"{n}_{i}": make(part.reshape(-1)) for n, array in self.arrays.items() for i, part in enumerate(array)
        }

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())


class TFLiteDecoder(OneTextDecoder):
    """A file that `export` wrote from a causal language model.

    Args:
        path: the file.
        threads: threads of one run; by default all cores.
        weight_cache: a folder in which LiteRT keeps its own form of the weights; later starts from there are many
            times faster. None keeps it in memory alone.

    Raises:
        MissingFileError: no such file.
        ModelFileError: it does not generate, or it is damaged.
    """

    config: CausalLMConfig

    def __init__(
        self, path: str | Path, threads: int | None = None, weight_cache: str | Path | None = None
    ) -> None:
        self.path = self.tflite = Path(path)
        check_if_listed(self.path)
        members = read_metadata(self.path)
        if extras.CONFIG not in members:
            raise ModelFileError(f"{path} holds no causal language model; export one with tfopt")
        self.members = members
        self.config = CausalLMConfig.from_json(members[extras.CONFIG])
        self._model, self._buffer = self._loaded(threads, weight_cache)
        self.turn = threading.Lock()  # a compiled model runs for one session after the other
        try:
            self.signatures = self._signatures()
            first = self._model.get_input_tensor_details(self.signatures[0].key)["key_0"]
        except MISFITS as error:
            raise ModelFileError(f"{path} is no TFLite file that generates: {first_line(error)}") from error
        self.narrow_cache = "int8" in str(first["dtype"])
        self.sizes = sorted({s.slots for s in self.signatures})
        self.context = self.sizes[-1]

    def _loaded(self, threads: int | None, weight_cache: str | Path | None) -> tuple[Any, Make]:
        return compiled(self.path, threads, weight_cache)

    def _signatures(self) -> list[DecoderSignature]:
        c, found = self.config, []
        for key in self._model.get_signature_list():
            shape = self._model.get_input_tensor_details(key)["key_0"]["shape"]
            signature = read_signature(key, int(np.prod(shape)) // (c.key_value_heads * c.head_size))
            if signature is None:
                raise ModelFileError(f"{self.path}: signature {key!r} is not one that generates")
            found.append(signature)
        return found

    def begin(self) -> "TFLiteSession":
        return TFLiteSession(self)

    def choose(self, kind: str, new: int, slots: int) -> DecoderSignature:
        """The signature of that kind that takes the most of `new` tokens, or all of them with least padding."""
        fitting = [s for s in self.signatures if s.kind == kind and s.slots == slots]
        holding = [s for s in fitting if s.new >= new]
        return min(holding, key=lambda s: s.new) if holding else max(fitting, key=lambda s: s.new)


class TFLiteSession(Session):
    """One text: its keys and values, and the arrays that each signature reads and writes."""

    _decoder: TFLiteDecoder

    def __init__(self, decoder: TFLiteDecoder) -> None:
        super().__init__(decoder)
        self._bound: dict[str, tuple[Any, ...]] = {}
        self._keys: Stored | None = None
        self._values: Stored | None = None
        self._make_room(1)

    def _make_room(self, length: int) -> None:
        """Takes the fewest slots that hold `length` tokens, keeping what is there."""
        c, decoder = self._decoder.config, self._decoder
        slots = next(size for size in decoder.sizes if size >= length)
        shape = (c.num_hidden_layers, c.key_value_heads, slots, c.head_size)
        keys, values = (Stored(name, shape, decoder.narrow_cache) for name in ("key", "value"))
        for new, old in ((keys, self._keys), (values, self._values)):
            if old is not None:
                new.copy_from(old, self.length)
        self._slots, self._bound, self._keys, self._values = slots, {}, keys, values
        make = decoder._buffer
        self._memory = keys.buffers(make) | values.buffers(make)

    def _bind(self, signature: DecoderSignature) -> tuple[Any, ...]:
        """Arrays and buffers of a signature's inputs and outputs."""
        if signature.key not in self._bound:
            model, make = self._decoder._model, self._decoder._buffer
            details = model.get_signature_list()[signature.key]
            ids, start = aligned(signature.new, np.int32), aligned(1, np.int32)
            shapes = model.get_output_tensor_details(signature.key)
            results = {name: aligned(int(np.prod(shapes[name]["shape"]))) for name in details["outputs"]}
            known = {"ids": make(ids), "start": make(start), **self._memory}
            self._bound[signature.key] = (
                model.get_signature_index(signature.key), ids, start, results,
                [known[name] for name in details["inputs"]], [make(results[name]) for name in details["outputs"]],
            )  # fmt: skip
        return self._bound[signature.key]

    def _run(self, signature: DecoderSignature, tokens: np.ndarray, at: int) -> np.ndarray | None:
        count, c = len(tokens), self._decoder.config
        try:
            index, ids, start, results, inputs, outputs = self._bind(signature)
            ids[:count], ids[count:], start[0] = tokens, 0, at
            with self._decoder.turn:
                self._decoder._model.run_by_index(index, inputs, outputs)
            shape = (c.num_hidden_layers, c.key_value_heads, signature.new, c.head_size)
            assert self._keys is not None and self._values is not None
            self._keys.write(results["keys"].reshape(shape)[:, :, :count], at)
            self._values.write(results["values"].reshape(shape)[:, :, :count], at)
        except MISFITS as error:  # a part of the file that is used for the first time, and does not fit
            raise ModelFileError(f"{self._decoder.path} does not run: {first_line(error)}") from error
        logits = results.get("logits")
        return None if logits is None else logits.reshape(signature.new, -1)[:count]

    def _extend(self, ids: np.ndarray, every: bool) -> np.ndarray:
        if self._keys is None:
            raise InputError("this session is closed; open another one")
        tokens, at = ids[0], self.length
        if at + len(tokens) > self._slots:
            self._make_room(at + len(tokens))
        parts = []
        # One token has its logits at the cheapest pass.
        every = every and len(tokens) > 1
        last = len(tokens) if every else len(tokens) - 1
        while tokens[:last].size:
            signature = self._decoder.choose("verify" if every else "prefill", last, self._slots)
            count = min(signature.new, last)
            logits = self._run(signature, tokens[:count], at)
            if logits is not None:
                parts.append(logits.copy())
            tokens, at, last = tokens[count:], at + count, last - count
        if tokens.size:
            logits = self._run(self._decoder.choose("decode", 1, self._slots), tokens, at)
            assert logits is not None
            parts.append(logits.copy())  # the next run writes into the same array
        return np.concatenate(parts)[None] if len(parts) > 1 else parts[0][None]

    @property
    def cache_bytes(self) -> int:
        return sum(stored.nbytes for stored in (self._keys, self._values) if stored is not None)

    def close(self) -> None:
        self._bound, self._memory = {}, {}
        self._keys = self._values = None
        self._slots = 0
