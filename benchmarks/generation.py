"""Generation beside llama.cpp and a plain Keras loop, in one process: tokens per second, long contexts, starts.

Random weights in two shapes: 15M (dim 288, 6 layers, 6 heads) and 110M (dim 768, 12 layers, 12 heads), vocabulary
32,000. Contestants take turns; each turn decodes 64 tokens after a prompt of 64, or reads a prompt of 200.

    make bench-env && .venv-bench/bin/python -m benchmarks.generation --shape 15M --threads 1
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import goal, paired, ratio, save, show
from benchmarks.gguf_llama import KINDS, LlamaCpp, write_gguf
from tfopt.decoding.config import CausalLMConfig
from tfopt.decoding.decoder import Decoder, LoopSession
from tfopt.decoding.generate import Choices, GenerateConfig

SHAPES = {
    "15M": CausalLMConfig(32000, max_position_embeddings=1024),
    "110M": CausalLMConfig(
        32000, 768, 12, num_attention_heads=12, intermediate_size=2048, max_position_embeddings=1024
    ),
}
PROMPT, NEW, PREFILL, SLOTS = 64, 64, 200, 256
FILES = {"float": None, "int8": "dynamic_int8", "int4": "dynamic_int4"}
PEERS = {"float": "float", "int8": "Q8_0", "int4": "Q4_0"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="15M")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    from tfopt.runtime.saved_model import set_threads

    set_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(SHAPES[arguments.shape], Path(folder), arguments.threads)
        facts = bench.decode_and_prefill(arguments.rounds) | bench.long_context(arguments.rounds) | bench.starts()
    save(f"generation_{arguments.shape}_{arguments.threads}_threads", facts)


class Bench:
    """The contestants of one shape."""

    def __init__(self, config: CausalLMConfig, folder: Path, threads: int) -> None:
        from tfopt import export
        from tfopt._keras import keras_api
        from tfopt.models import causal_lm
        from tfopt.runtime.tflite_decoder import TFLiteDecoder
        from tfopt.runtime.xla_decoder import XlaDecoder

        self.config, self.folder, self.threads = config, folder, threads
        keras_api.keras_module("keras").utils.set_random_seed(0)
        self.model = causal_lm(config, "keras")
        self.ids = np.random.default_rng(0).integers(3, config.vocab_size, PREFILL).astype(np.int32)
        self.decoders: dict[str, Decoder] = {}
        for name, kind in FILES.items():
            path = folder / f"{name}.tflite"
            export(self.model, path, format="tflite", quantization=kind, lengths=[SLOTS // 2, SLOTS, 1024])
            self.decoders[f"tflite {name}"] = TFLiteDecoder(path, threads, folder / "cache")
        small = XlaDecoder(self._with_context(SLOTS))
        self.decoders["xla float"] = small
        self.decoders["xla int8"] = XlaDecoder(self._with_context(SLOTS), 8)
        self.decoders["xla int4"] = XlaDecoder(self._with_context(SLOTS), 4)
        self.peers = {
            f"llama.cpp {kind}": LlamaCpp(write_gguf(config, folder / f"{kind}.gguf", kind), threads, SLOTS)
            for kind in KINDS
        }

    def _with_context(self, context: int) -> Any:
        """The same model for a shorter context, as llama.cpp is asked for."""
        import dataclasses

        from tfopt.models import causal_lm

        model = causal_lm(dataclasses.replace(self.config, max_position_embeddings=context), "keras")
        model.set_weights(self.model.get_weights())
        return model

    def decode_and_prefill(self, rounds: int) -> dict[str, Any]:
        decode: dict[str, Callable[[], Any]] = {n: self._decoding(d) for n, d in self.decoders.items()}
        decode |= {n: self._peer_decoding(p) for n, p in self.peers.items()}
        seconds = {name: values / NEW for name, values in paired(decode, rounds).items()}
        seconds["keras loop"] = np.full(rounds, self._keras_loop())
        prompts: dict[str, Callable[[], Any]] = {n: self._reading(d) for n, d in self.decoders.items()}
        prompts |= {n: self._peer_reading(p) for n, p in self.peers.items()}
        reading = {name: values / PREFILL for name, values in paired(prompts, rounds).items()}
        rates = {
            "decode_tokens_per_s": {n: round(1 / float(np.median(v))) for n, v in seconds.items()},
            "prefill_tokens_per_s": {n: round(1 / float(np.median(v))) for n, v in reading.items()},
        }
        for name, values in rates.items():
            show({f"{name} {who}": value for who, value in values.items()})
        against = {k: ratio(seconds[f"llama.cpp {p}"], seconds[f"tflite {k}"]) for k, p in PEERS.items()}
        xla = {k: ratio(seconds[f"llama.cpp {p}"], seconds[f"xla {k}"]) for k, p in PEERS.items()}
        prefill = ratio(reading["llama.cpp Q8_0"], reading["tflite int8"])
        goals = [
            goal("decode float / llama.cpp float", max(against["float"]["median"], xla["float"]["median"]), 1.0),
            goal("decode int8 / llama.cpp Q8_0", max(against["int8"]["median"], xla["int8"]["median"]), 1.0),
            goal("decode int4 / llama.cpp Q4_0", max(against["int4"]["median"], xla["int4"]["median"]), 0.8),
            goal("prefill int8 / llama.cpp Q8_0", prefill["median"], 1.0),
            goal("int8 / Keras loop", float(np.median(seconds["keras loop"] / seconds["tflite int8"])), 50),
        ]
        return {**rates, "tflite_against_llama_cpp": against, "xla_against_llama_cpp": xla,
                "prefill_against_llama_cpp": prefill, "goals": goals}  # fmt: skip

    def long_context(self, rounds: int) -> dict[str, Any]:
        """What a cache for 1,024 tokens costs a text that is still short."""
        from tfopt import export
        from tfopt.runtime.tflite_decoder import TFLiteDecoder

        path = self.folder / "short.tflite"
        export(self.model, path, format="tflite", quantization="dynamic_int8", lengths=[SLOTS // 2, SLOTS])
        only = TFLiteDecoder(path, self.threads, self.folder / "cache")
        seconds = paired(
            {"1024": self._decoding(self.decoders["tflite int8"]), "256": self._decoding(only)}, rounds
        )
        found = ratio(seconds["1024"], seconds["256"])
        show({"exported for 1,024 and 256 / for 256 only": found})
        return {"long_context": found, "long_context_goals": [
            goal("decoding before 256, exported for 1,024 / for 256", found["median"], 1.2, True)]}  # fmt: skip

    def starts(self) -> dict[str, Any]:
        """Loading without and with the weights that LiteRT kept."""
        from tfopt.runtime.tflite_decoder import TFLiteDecoder
        from tfopt.tflite.file import read_tflite

        path, times = (
            self.folder / "int8.tflite",
            {"first": list[float](), "second": list[float](), "check": list[float]()},
        )
        for turn in range(5):
            started = time.perf_counter()
            read_tflite(path)  # what a first start does besides, to refuse damaged files
            times["check"].append(time.perf_counter() - started)
            for name in ("first", "second"):
                started = time.perf_counter()
                decoder = TFLiteDecoder(path, self.threads, self.folder / f"starts{turn}")
                times[name].append(time.perf_counter() - started)
                with decoder.open([0]) as session:
                    session.extend(self.ids[None, :1])
        first, second, check = (np.array(times[name]) for name in ("first", "second", "check"))
        found = ratio(first - check, second)
        milliseconds = {name: round(1e3 * float(np.median(values)), 1) for name, values in times.items()}
        show({"start without the check, first / second": found, "milliseconds": milliseconds})
        return {"starts_ms": milliseconds, "starts": found, "start_goals": [
            goal("first start without the check / second start", found["median"], 10)]}  # fmt: skip

    def _decoding(self, decoder: Decoder) -> Callable[[], None]:
        session = decoder.open([0])
        session.extend(self.ids[None, :PROMPT])
        config = GenerateConfig(max_tokens=NEW, stop_tokens=())

        def work() -> None:
            session.rewind(PROMPT)
            if isinstance(session, LoopSession):
                text = Choices(self.ids[: PROMPT + 1].tolist(), config, self.config.vocab_size)
                session.generate([text], [True], NEW)
                return
            token = int(self.ids[PROMPT])
            for _ in range(NEW):
                token = int(session.extend(np.array([[token]], np.int32))[0, -1].argmax())

        return work

    def _peer_decoding(self, peer: LlamaCpp) -> Callable[[], None]:
        peer.extend(self.ids[:PROMPT])

        def work() -> None:
            peer.rewind(PROMPT)
            token = int(self.ids[PROMPT])
            for _ in range(NEW):
                token = int(peer.extend(np.array([token])).argmax())

        return work

    def _reading(self, decoder: Decoder) -> Callable[[], None]:
        session = decoder.open([0])

        def work() -> None:
            session.rewind(0)
            session.extend(self.ids[None])

        return work

    def _peer_reading(self, peer: LlamaCpp) -> Callable[[], None]:
        def work() -> None:
            peer.rewind(0)
            peer.extend(self.ids)

        return work

    def _keras_loop(self) -> float:
        """Seconds per token of a loop that recomputes the prefix, over a few tokens in the middle of the answer."""
        times = []
        for count in range(PROMPT + NEW // 2, PROMPT + NEW // 2 + 6):
            ids = self.ids[None, :count]
            inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
            started = time.perf_counter()
            self.model.predict(inputs, verbose=0)[0, -1].argmax()
            times.append(time.perf_counter() - started)
        return float(np.median(times[1:]))


if __name__ == "__main__":
    main()
