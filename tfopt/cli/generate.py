"""`tfopt generate`, and what `tfopt bench` shows of models that generate."""

import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tfopt._base.foreign import read_text
from tfopt._base.limits import MAX_MEMBER_BYTES
from tfopt.cli.output import Imports, Json, Trust, print_json
from tfopt.errors import InputError


def generate(
    model: Annotated[
        Path,
        typer.Argument(help="A Keras file, a folder of Hugging Face, KerasHub or llama2.c, or a .tflite file."),
    ],
    prompt: Annotated[list[str], typer.Option("--prompt", help="The text to continue; repeatable.")],
    max_tokens: Annotated[int, typer.Option(help="Most new tokens.")] = 128,
    min_tokens: Annotated[int, typer.Option(help="New tokens before the text may end.")] = 0,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="Choose among so many tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Choose among tokens that make up this share.")] = None,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: say things once.")] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="End before this string; repeatable.")] = None,
    stop_token: Annotated[list[int] | None, typer.Option("--stop-token", help="Ids that end a text.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Show the text as it comes.")] = False,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Keep the end of prompts that are too long.")
    ] = False,
    draft: Annotated[
        str | None, typer.Option(help="A smaller model that proposes tokens, or 'lookup': the text itself does.")
    ] = None,
    runtime: Annotated[str | None, typer.Option(help="eager, xla or tflite.")] = None,
    bits: Annotated[int | None, typer.Option(help="With xla: weights in 8 or 4 bits.")] = None,
    threads: Annotated[int | None, typer.Option(help="Of a .tflite file; all cores if not given.")] = None,
    weight_cache: Annotated[Path | None, typer.Option(help="Folder that makes later starts faster.")] = None,
    trust: Trust = False,
    imports: Imports = None,
    as_json: Json = False,
) -> None:
    """Continues a text, or translates it."""
    from tfopt.decoding.generate import GenerateConfig
    from tfopt.engine.generator import Generator

    stops = None if stop_token is None else tuple(stop_token)
    choices = (temperature, top_k, top_p, repetition_penalty, seed)
    config = GenerateConfig(*choices, max_tokens, min_tokens, stops, tuple(stop or ()), truncate)
    if stream and (as_json or len(prompt) > 1):
        raise InputError("--stream shows one prompt's text as it comes; leave --json and further prompts away")
    generator = Generator.load(
        model, runtime=runtime, threads=threads, draft=draft, bits=bits, weight_cache=weight_cache, trust=trust,
        imports=imports or (),
    )  # fmt: skip
    if stream:
        sys.stdout.write(prompt[0] if generator.decoder.continues else "")
        with contextlib.closing(generator.stream(prompt[0], config)) as pieces:
            for piece in pieces:
                sys.stdout.write(piece.text)
                sys.stdout.flush()
        sys.stdout.write("\n")
        return
    answers = generator.generate(prompt, config)
    if as_json:
        rows = [{"prompt": p, **dataclasses.asdict(a)} for p, a in zip(prompt, answers, strict=True)]
        print_json(rows[0] if len(rows) == 1 else {"answers": rows})
        return
    for text, answer in zip(prompt, answers, strict=True):
        typer.echo(text + answer.text if generator.decoder.continues else answer.text)


def bench_generation(
    artifacts: list[Path],
    length: int,
    text: Path | None,
    rounds: int,
    threads: int | None,
    trust: bool,
) -> tuple[dict[str, Any], Any]:
    """Figures of models that generate, and how to show them."""
    from tfopt.engine.generator import Generator
    from tfopt.measure.generation import measure_generation

    if len({path.resolve() for path in artifacts}) < len(artifacts):
        raise InputError("the same artifact is named twice")
    generators = {str(path): Generator.load(path, threads=threads, trust=trust) for path in artifacts}
    ids = None
    if text is not None:
        content = read_text(text, "text", most=MAX_MEMBER_BYTES)
        without = next((name for name, g in generators.items() if g.tokenizer is None), None)
        if without is not None:
            raise InputError(f"{without} carries no tokenizer, so it cannot read {text}")
        ids = {name: g.tokenizer.encode_ids(content) for name, g in generators.items() if g.tokenizer is not None}
    decoders = {name: g.decoder for name, g in generators.items()}
    half = min(length, *(d.context // 2 for d in decoders.values()))
    found = measure_generation(decoders, prompt_tokens=half, new_tokens=half, rounds=rounds, text=ids)

    def show() -> None:
        for row in found:
            typer.echo(f"{row.name}:")
            typer.echo(f"  prefill {row.prefill_tokens_per_s:,.0f} tokens/s, first token {row.first_token_s:.4f} s")
            typer.echo(f"  decode {row.decode_tokens_per_s:,.0f} tokens/s, cache {row.cache_bytes:,} bytes")
            if row.quality is not None:
                right = f"{row.quality.next_token_accuracy:.1%} of next tokens right"
                typer.echo(f"  perplexity {row.quality.perplexity:.3f}, {right} ({row.quality.tokens:,} tokens)")

    return {"artifacts": [dataclasses.asdict(row) for row in found]}, show
