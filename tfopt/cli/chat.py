"""`tfopt chat`."""

import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tfopt._base.files import existing
from tfopt._base.foreign import to_text
from tfopt.cli.output import Imports, Json, Threads, Trust, print_json
from tfopt.errors import InputError

_AWAY = ("/quit", "/exit")


def chat(
    model: Annotated[Path, typer.Argument(help="A model that generates, with a chat template.")],
    message: Annotated[
        list[str] | None, typer.Option("--message", help="What is said instead of lines of input; repeatable.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="What the model is told first.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 512,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="Choose among so many tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Choose among tokens that make up this share.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same answers.")] = 0,
    draft: Annotated[
        str | None, typer.Option(help="A smaller model that proposes tokens, or 'lookup': the text itself does.")
    ] = None,
    runtime: Annotated[str | None, typer.Option(help="eager, xla or tflite.")] = None,
    bits: Annotated[int | None, typer.Option(help="With xla: weights in 8 or 4 bits.")] = None,
    threads: Threads = None,
    trust: Trust = False,
    imports: Imports = None,
    as_json: Json = False,
) -> None:
    """Talks: answers come as they are made, and what was said is kept. An empty line of input ends it."""
    existing(model, "model")
    if as_json and not message:
        raise InputError("--json answers messages: give --message, once or several times")
    from tfopt.decoding.generate import GenerateConfig
    from tfopt.engine.generator import Generator

    config = GenerateConfig(temperature, top_k, top_p, seed=seed, max_tokens=max_tokens)
    generator = Generator.load(
        model, runtime=runtime, threads=threads, draft=draft, bits=bits, trust=trust, imports=imports or ()
    )
    said: list[dict[str, str]] = [] if system is None else [{"role": "system", "content": system}]
    if as_json:
        print_json({"messages": said, "answers": _answered(generator, said, message or [], config=config)})
        return
    if message:
        for text in message:
            _say(generator, said, text, config=config)
        return
    _talk(generator, said, config)


def _answered(generator: Any, said: list[dict[str, str]], texts: list[str], config: Any) -> list[dict[str, Any]]:
    answers = []
    for text in texts:
        said.append({"role": "user", "content": text})
        answer = generator.chat(said, config)
        said.append({"role": "assistant", "content": answer.text})
        answers.append(dataclasses.asdict(answer))
    return answers


def _talk(generator: Any, said: list[dict[str, str]], config: Any) -> None:
    """Lines of input, until there are no more."""
    is_terminal = sys.stdin.isatty()
    while True:
        if is_terminal:
            sys.stdout.write("> ")
            sys.stdout.flush()
        text = to_text(sys.stdin.buffer.readline(), "a line of input").strip()
        if not text or text in _AWAY:
            return
        _say(generator, said, text, config=config)


def _say(generator: Any, said: list[dict[str, str]], text: str, config: Any) -> None:
    """Shows an answer as it comes, and keeps both."""
    said.append({"role": "user", "content": text})
    answer = ""
    with contextlib.closing(generator.chat_stream(said, config)) as pieces:
        for piece in pieces:
            answer += piece.text
            sys.stdout.write(piece.text)
            sys.stdout.flush()
    sys.stdout.write("\n")
    said.append({"role": "assistant", "content": answer})
