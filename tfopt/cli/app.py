"""The `tfopt` command: its commands in the order of use, and what becomes of errors and signals.

Everything heavy is imported inside the commands, so that help and usage errors come at once.
"""

import contextlib
import gc
import signal
import sys
from typing import Annotated, Any

import typer
import typer.core

import tfopt
from tfopt._base.foreign import check_whole
from tfopt._base.native_log import native_log_aside, quiet_exit
from tfopt.cli import archive, chat, data, generate, model, optimize, predict, run, search
from tfopt.cli.words import in_words_of_the_shell
from tfopt.errors import InputError, TfoptError

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 75
# Commands in the order in which they are used, in groups, as `--help` shows them.
GROUPS = {
    "Make a model smaller and faster": ("optimize", "demo", "run", "launch", "search"),
    "Look, export and measure": ("inspect", "export", "bench", "verify"),
    "Answer texts": ("predict", "generate", "chat"),
    "Data and archives": ("data", "pack", "unpack"),
}


class _InGroups(typer.core.TyperGroup):
    """Shows the commands in groups."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [name for names in GROUPS.values() for name in names]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for title, names in GROUPS.items():
            with formatter.section(title):
                rows = [(name, self.commands[name].get_short_help_str(limit=100)) for name in names]
                formatter.write_dl(rows)


app = typer.Typer(
    help="Makes Keras models smaller and faster, verifies what it wrote, and measures it against where it came "
    "from.",
    cls=_InGroups,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data.app, name="data")
for command in (
    optimize.optimize, optimize.demo, run.run, run.launch, search.search, model.inspect, model.export, model.bench,
    run.verify, predict.predict, generate.generate, chat.chat, archive.pack, archive.unpack,
):  # fmt: skip
    app.command()(command)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tfopt {tfopt.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None: ...


def entry() -> None:
    """`main` as a process of its own."""
    try:
        main()
    finally:
        quiet_exit()
        gc.freeze()  # Keras leaves millions of objects, and Python would search them once more: a second


def main() -> None:
    """The `tfopt` command; exits 0 done, 1 failed, 2 bad input, 75 interrupted and resumable."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    with native_log_aside() as native_log:
        try:
            for argument in sys.argv[1:]:
                check_whole(argument, "an argument")
            app()
        except _InterruptedBySignal:
            if sys.argv[1:2] in (["search"], ["optimize"], ["demo"]) or _writes_answers(sys.argv[1:]):
                _fail("interrupted; the same command goes on from what is finished", INTERRUPTED)
            if sys.argv[1:2] != ["run"]:
                _fail("interrupted", FAILED)
            _fail("interrupted; the same command with --resume goes on from the last finished step", INTERRUPTED)
        except InputError as error:
            _fail(in_words_of_the_shell(str(error), sys.argv[1:2]), USAGE)
        except TfoptError as error:
            _fail(f"{in_words_of_the_shell(str(error), sys.argv[1:2])}{native_log.kept()}", FAILED)
        except OSError as error:  # a full disk, a folder that may not be written
            _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", FAILED)


def _writes_answers(arguments: list[str]) -> bool:
    return arguments[:1] == ["predict"] and any(one.partition("=")[0] == "--out" for one in arguments)


class _InterruptedBySignal(BaseException):
    """Not KeyboardInterrupt, which the command line library would turn into an exit code of its own."""


def _interrupt(number: int, frame: Any) -> None:
    raise _InterruptedBySignal


def _fail(message: str, code: int) -> None:
    with contextlib.suppress(BrokenPipeError):
        sys.stderr.write("tfopt: error: " + " ".join(message.split()) + "\n")
    raise SystemExit(code)
