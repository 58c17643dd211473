"""A language model in fewer bits beside llama.cpp's files of the same weights: quality on text, bytes, speed.

Every file reads the same held-out text, window by window, and is compared with the float model: perplexity, the
share of tokens at which the same one is the likeliest next, mean divergence in nats. Then each decodes 64 tokens,
taking turns in one process.

    python -m benchmarks.llm_quality --model SmolLM2-135M-Instruct.Q4_1.gguf --text held_out.txt --threads 1

llama.cpp's files are made by its own quantizer, of the model in float.
"""

import argparse
import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import tfopt
from benchmarks.common import goal, paired, ratio, save, show
from benchmarks.gguf_llama import LlamaCpp
from tfopt._keras import extras
from tfopt.engine.opening import tokenizer_of
from tfopt.numerics.agreement import MEASURES, divergence, next_tokens, perplexities
from tfopt.quantization.config import NAMED
from tfopt.runtime.eager_decoder import EagerDecoder
from tfopt.runtime.tflite_decoder import TFLiteDecoder

WINDOW, PROMPT, NEW, SLOTS = 256, 64, 64, (128, 256)
OURS: dict[str, Any] = {
    "int8": "dynamic_int8",
    "int4 in blocks of 32": "dynamic_int4_block32",
    "int4 in blocks of 32, GPTQ": dataclasses.replace(
        NAMED["dynamic_int4_block32"], smooth=0.5, rounding="gptq", table_bits=8
    ),
}
PEERS = ("Q8_0", "Q4_0", "Q4_K_M")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a .gguf file")
    parser.add_argument("--text", type=Path, required=True, help="held-out text")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=11)
    arguments = parser.parse_args()
    model = tfopt.models.from_pretrained(arguments.model)
    ids = windows_of(model, arguments.text, arguments.windows)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(model, arguments.model, Path(folder), arguments.threads)
        rows = bench.quality(ids)
        speed = bench.speed(ids[0], arguments.rounds)
    for name, row in rows.items():
        row["tokens_per_s"] = round(NEW / float(np.median(speed[name])), 1)
    show(rows)
    plain = rows.pop("float")["perplexity"]
    goals = [
        goal("int8 / float, perplexity", rows["int8"]["perplexity"] / plain, 1.01, at_most=True),
        goal("int4 / float, perplexity", rows["int4 in blocks of 32"]["perplexity"] / plain, 1.05, at_most=True),
        goal("int8 / Q8_0, tokens a second", ratio(speed["Q8_0"], speed["int8"])["median"], 1.0),
        goal("int4 / Q4_0, tokens a second", ratio(speed["Q4_0"], speed["int4 in blocks of 32"])["median"], 1.0),
    ]
    save(f"llm_quality_{arguments.threads}_threads", {"float_perplexity": plain, "files": rows, "goals": goals})


def windows_of(model: Any, text: Path, count: int) -> np.ndarray:
    """Token ids of windows that are spread over a text: (count, WINDOW)."""
    tokenizer = tokenizer_of(extras.of(model))
    ids = tokenizer.encode_ids(text.read_text("utf-8"))
    starts = np.linspace(0, len(ids) - WINDOW, count).astype(int)
    return np.array([ids[start : start + WINDOW] for start in starts], np.int32)


class Bench:
    """The files of one model."""

    def __init__(self, model: Any, source: Path, folder: Path, threads: int) -> None:
        self._threads, self.sizes = threads, {"float": source.stat().st_size}
        self.ours: dict[str, Any] = {"float": EagerDecoder(model, WINDOW)}
        for name, kind in OURS.items():
            path = folder / f"{len(self.ours)}.tflite"
            tfopt.export(model, path, quantization=kind, lengths=SLOTS, accept=MEASURES)
            self.ours[name], self.sizes[name] = TFLiteDecoder(path, threads), path.stat().st_size
        plain = self._quantized(source, folder / "F32.gguf", "ALL_F32")
        self.peers = {}
        for kind in PEERS:
            path = self._quantized(plain, folder / f"{kind}.gguf", f"MOSTLY_{kind}")
            self.peers[kind], self.sizes[kind] = LlamaCpp(path, threads, WINDOW, every=True), path.stat().st_size

    def _quantized(self, source: Path, target: Path, kind: str) -> Path:
        import llama_cpp

        settings = llama_cpp.llama_model_quantize_default_params()
        settings.ftype, settings.allow_requantize = getattr(llama_cpp, f"LLAMA_FTYPE_{kind}"), True
        if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), settings):
            raise RuntimeError(f"llama.cpp could not write {target}")
        return target

    def quality(self, ids: np.ndarray) -> dict[str, dict[str, Any]]:
        """What each file makes of a text."""
        reference = self._logits(self.ours["float"], ids)
        rows = {}
        for name, decoder in (self.ours | self.peers).items():
            found = reference if name == "float" else self._logits(decoder, ids)
            rows[name] = {
                "perplexity": round(perplexities(found, reference, ids)[0], 3),
                "next_tokens": round(next_tokens(found, reference), 4),
                "divergence": round(divergence(found, reference), 5), "bytes": self.sizes[name],
            }  # fmt: skip
            print(name, rows[name], flush=True)
        return rows

    def _logits(self, decoder: Any, ids: np.ndarray) -> np.ndarray:
        if isinstance(decoder, LlamaCpp):
            return np.stack([decoder.every(row) for row in ids])
        found = []
        for row in ids:
            with decoder.open([0]) as session:
                found.append(session.extend(row[None], every=True)[0])
        return np.stack(found)

    def speed(self, ids: np.ndarray, rounds: int) -> dict[str, np.ndarray]:
        """Seconds in which each decodes `NEW` tokens behind a prompt."""
        contestants: dict[str, Callable[[], None]] = {}
        for name, decoder in self.ours.items():
            contestants[name] = self._decoding(decoder, ids)
        for name, peer in self.peers.items():
            contestants[name] = self._peer_decoding(peer, ids)
        return paired(contestants, rounds)

    def _decoding(self, decoder: Any, ids: np.ndarray) -> Callable[[], None]:
        session = decoder.open([0])
        session.extend(ids[None, :PROMPT])

        def work() -> None:
            session.rewind(PROMPT)
            token = int(ids[PROMPT])
            for _ in range(NEW):
                token = int(session.extend(np.array([[token]], np.int32))[0, -1].argmax())

        return work

    def _peer_decoding(self, peer: LlamaCpp, ids: np.ndarray) -> Callable[[], None]:
        peer.rewind(0)
        peer.extend(ids[:PROMPT])

        def work() -> None:
            peer.rewind(PROMPT)
            token = int(ids[PROMPT])
            for _ in range(NEW):
                token = int(peer.extend(np.array([token])).argmax())

        return work


if __name__ == "__main__":
    main()
