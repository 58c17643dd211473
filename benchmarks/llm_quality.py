"""A language model in fewer bits beside llama.cpp's files of the same weights: quality on text, bytes, speed.

Every file reads the same held-out text, window by window, and is compared with the float model: perplexity, the
share of tokens at which the same one is the likeliest next, mean divergence in nats. Then each decodes 64 tokens,
taking turns in one process, on each number of threads.

    python -m benchmarks.llm_quality --model SmolLM2-135M-Instruct.Q4_1.gguf --text held_out.txt

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
from benchmarks.gguf_llama import LlamaCpp, quantized
from tfopt._base.cores import usable_cores
from tfopt._keras import extras, keras_api
from tfopt.engine.opening import tokenizer_of
from tfopt.numerics.agreement import MEASURES, divergence, next_tokens, perplexities
from tfopt.quantization.config import NAMED
from tfopt.runtime.eager_decoder import EagerDecoder
from tfopt.runtime.tflite_decoder import TFLiteDecoder

WINDOW, PROMPT, NEW, SLOTS = 256, 64, 64, (128, 256)
_BLOCKS = NAMED["dynamic_int4_block32"]
OURS: dict[str, Any] = {
    "int8": "dynamic_int8",
    "int4, as the weights came": "dynamic_int4",
    "int4, symmetric, rotated, GPTQ": dataclasses.replace(_BLOCKS, rotate=True, rounding="gptq", table_bits=8),
    "int3, rotated, GPTQ": dataclasses.replace(
        _BLOCKS, weight_bits=3, weight_symmetric=False, rotate=True, rounding="gptq", table_bits=8
    ),
}
INT8, INT4, ROTATED, INT3 = OURS
PEERS = ("Q8_0", "Q4_0", "Q4_K_M", "Q3_K_M")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a .gguf file")
    parser.add_argument("--text", type=Path, required=True, help="held-out text")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--files", type=Path, help="where files are kept, and taken from")
    arguments = parser.parse_args()
    model = tfopt.models.from_pretrained(arguments.model)
    ids = windows_of(model, arguments.text, arguments.windows)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(model, arguments.model, arguments.files or Path(folder))
        rows = bench.quality(ids)
        speeds = {threads: bench.speed(ids[0], threads, arguments.rounds) for threads in arguments.threads}
    count = parameters_of(model)
    plain = rows.pop("float")["perplexity"]
    for name, row in rows.items():
        row["bits_per_weight"] = round(8 * row["bytes"] / count, 2)
        row["tokens_per_s"] = {t: round(NEW / float(np.median(speed[name])), 1) for t, speed in speeds.items()}
    show(rows)
    save("llm_quality", {"float_perplexity": plain, "files": rows, "goals": goals_of(rows, speeds, plain)})


def goals_of(rows: dict[str, Any], speeds: dict[int, dict[str, np.ndarray]], plain: float) -> list[dict[str, Any]]:
    """What was asked for: little is lost, and no file of llama.cpp's is both better and faster."""
    found = [
        goal(f"{name} / float, perplexity", rows[name]["perplexity"] / plain, limit, at_most=True)
        for name, limit in ((INT8, 1.01), (INT4, 1.05), (INT3, 1.15))
    ]
    best = rows["Q4_K_M"]["perplexity"]
    found.append(goal(f"{INT4} / Q4_K_M, perplexity", rows[INT4]["perplexity"] / best, 1.0, at_most=True))
    found.append(goal(f"{INT4}, bits a weight in all", rows[INT4]["bits_per_weight"], 4.6, at_most=True))
    worse = rows["Q4_0"]["perplexity"]
    found.append(goal(f"{ROTATED} / Q4_0, perplexity", rows[ROTATED]["perplexity"] / worse, 1.0, at_most=True))
    for threads, speed in speeds.items():
        for ours, peer in ((INT8, "Q8_0"), (INT4, "Q4_K_M"), (ROTATED, "Q4_0"), (INT3, "Q3_K_M")):
            name = f"{ours} / {peer}, tokens a second, {threads} threads"
            found.append(goal(name, ratio(speed[peer], speed[ours])["median"], 1.0))
    return found


def parameters_of(model: Any) -> int:
    """Weights, each once."""
    return sum(
        int(np.prod(w.variable.shape)) for w in keras_api.weights(model) if w.name in ("kernel", "embeddings")
    )


def windows_of(model: Any, text: Path, count: int) -> np.ndarray:
    """Token ids of windows that are spread over a text: (count, WINDOW)."""
    tokenizer = tokenizer_of(extras.of(model))
    ids = tokenizer.encode_ids(text.read_text("utf-8"))
    starts = np.linspace(0, len(ids) - WINDOW, count).astype(int)
    return np.array([ids[start : start + WINDOW] for start in starts], np.int32)


class Bench:
    """The files of one model."""

    def __init__(self, model: Any, source: Path, folder: Path) -> None:
        self._float = EagerDecoder(model, WINDOW)
        self.paths: dict[str, Path] = {}
        for name, kind in OURS.items():
            path = self.paths[name] = folder / f"{len(self.paths)}.tflite"
            if not path.exists():
                tfopt.export(model, path, quantization=kind, lengths=SLOTS, accept=MEASURES)
        plain = quantized(source, folder / "F32.gguf", "ALL_F32")
        for name in PEERS:
            self.paths[name] = quantized(plain, folder / f"{name}.gguf", f"MOSTLY_{name}")

    def _opened(self, name: str, threads: int) -> Any:
        if name in PEERS:
            return LlamaCpp(self.paths[name], threads, WINDOW, every=True)
        return TFLiteDecoder(self.paths[name], threads)

    def quality(self, ids: np.ndarray) -> dict[str, dict[str, Any]]:
        """What each file makes of a text."""
        reference = self._logits(self._float, ids)
        rows: dict[str, dict[str, Any]] = {"float": {"perplexity": perplexities(reference, reference, ids)[0]}}
        for name, path in self.paths.items():
            found = self._logits(self._opened(name, usable_cores()), ids)
            rows[name] = {
                "perplexity": round(perplexities(found, reference, ids)[0], 3),
                "next_tokens": round(next_tokens(found, reference), 4),
                "divergence": round(divergence(found, reference), 5), "bytes": path.stat().st_size,
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

    def speed(self, ids: np.ndarray, threads: int, rounds: int) -> dict[str, np.ndarray]:
        """Seconds in which each decodes `NEW` tokens behind a prompt."""
        contestants: dict[str, Callable[[], None]] = {}
        for name in self.paths:
            decoding = self._peer_decoding if name in PEERS else self._decoding
            contestants[name] = decoding(self._opened(name, threads), ids)
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
