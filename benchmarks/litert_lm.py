"""A `.litertlm` file in LiteRT-LM beside the `.tflite` file of the same model in LiteRT: tokens a second.

Both are exported here, in 8 bits, and take turns in one process: each reads a prompt and says 64 tokens. In LiteRT
it begins in a cache of 128 tokens and moves to longer ones; LiteRT-LM reads the whole cache at every token, so it
is measured with one of 256 and one of 1,024 tokens.

    python -m benchmarks.litert_lm --model SmolLM2-135M-Instruct.Q4_1.gguf --threads 1
    python -m benchmarks.litert_lm --shape 15M --threads 1
"""

import argparse
import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import litert_lm
import numpy as np

import tfopt
from benchmarks.common import goal, paired, ratio, save, show
from benchmarks.generation import SHAPES
from tfopt._base.members import TOKENIZER
from tfopt._keras import extras, keras_api
from tfopt.data.stdlib_docs import read_stdlib_docs
from tfopt.data.tokenizers import train_bpe
from tfopt.engine.generator import Generator
from tfopt.numerics.agreement import MEASURES

NEW, SLOTS, KIND = 64, (256, 1024), "dynamic_int8"
PROMPT = "The house at the end of the street had been empty for years, until one morning"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", type=Path, help="a checkpoint")
    which.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    model = fresh(arguments.shape) if arguments.model is None else tfopt.models.from_pretrained(arguments.model)
    name = arguments.shape or arguments.model.name.partition(".")[0]
    litert_lm.set_min_log_severity(litert_lm.LogSeverity.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        contestants, sizes = contestants_of(model, Path(folder), arguments.threads)
        seconds = paired(contestants, arguments.rounds)
    rates = {who: round(NEW / float(np.median(values)), 1) for who, values in seconds.items()}
    show({f"tokens/s, {who}": rate for who, rate in rates.items()})
    against = {n: ratio(seconds["LiteRT, .tflite"], seconds[f"LiteRT-LM, {n} slots"]) for n in SLOTS}
    show({f"LiteRT-LM with {n} slots / LiteRT": found for n, found in against.items()})
    goals = [goal("LiteRT-LM / LiteRT, tokens a second", against[SLOTS[0]]["median"], 0.8)]
    save(f"litert_lm_{name}_{arguments.threads}_threads", {
        "tokens_per_s": rates, "against_litert": {str(n): found for n, found in against.items()}, "bytes": sizes,
        "goals": goals,
    })  # fmt: skip


def fresh(shape: str) -> Any:
    """A model with random weights, and a tokenizer."""
    keras_api.keras_module("keras").utils.set_random_seed(0)
    # LiteRT-LM wants a token that ends a text; this one is in none.
    config = dataclasses.replace(SHAPES[shape], end_tokens=(SHAPES[shape].vocab_size - 1,))
    model = tfopt.models.causal_lm(config, "keras")
    texts, _ = read_stdlib_docs()
    extras.keep(model, TOKENIZER, train_bpe(texts, 2048).to_str().encode())
    return model


def contestants_of(model: Any, folder: Path, threads: int) -> tuple[dict[str, Callable[[], None]], dict[str, int]]:
    """Work by contestant, and the bytes of each file."""
    accept = MEASURES  # of random weights nothing can be expected
    ours = folder / "model.tflite"
    tfopt.export(model, ours, quantization=KIND, lengths=[128, *SLOTS], accept=accept)
    generator = Generator.load(ours, threads=threads)
    config = tfopt.GenerateConfig(max_tokens=NEW, stop_tokens=())

    def in_litert() -> None:
        assert len(generator.generate(PROMPT, config)[0].tokens) == NEW

    contestants, sizes = {"LiteRT, .tflite": in_litert}, {"tflite": ours.stat().st_size}
    for slots in SLOTS:
        path = folder / f"model{slots}.litertlm"
        tfopt.export(model, path, quantization=KIND, lengths=[slots], accept=accept)
        sizes[f"litertlm, {slots} slots"] = path.stat().st_size
        contestants[f"LiteRT-LM, {slots} slots"] = in_litert_lm(path, threads)
    return contestants, sizes


def in_litert_lm(path: Path, threads: int) -> Callable[[], None]:
    engine = litert_lm.Engine(
        str(path), backend=litert_lm.Backend.CPU(thread_count=threads), cache_dir=":nocache", enable_benchmark=True
    )
    greedy = litert_lm.SamplerConfig(top_k=1)

    def work() -> None:
        session = engine.create_session(apply_prompt_template=False, sampler_config=greedy, max_output_tokens=NEW)
        session.run_prefill([PROMPT])
        session.run_decode()
        assert session.get_benchmark_info().last_decode_token_count >= NEW - 1
        session.close()

    return work


if __name__ == "__main__":
    main()
