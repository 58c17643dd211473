"""`tfopt pack` and `tfopt unpack`, and `tfopt verify` of an archive."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from tfopt.cli.output import Json, print_json


def pack(
    artifact: Annotated[Path, typer.Argument(help="A .tflite file, a SavedModel, or any file or folder.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="The archive to write.")] = None,
    as_json: Json = False,
) -> None:
    """Packs an artifact for download: zeros, few bits and shared values cost what they should."""
    from tfopt import archive

    found = archive.pack(artifact, out)
    if as_json:
        print_json({**dataclasses.asdict(found), "path": str(found.path)})
        return
    share = found.packed_bytes / max(found.entropy_bytes, 1) - 1
    typer.echo(
        f"{found.path}: {found.packed_bytes:,} bytes of {found.bytes:,} "
        f"({found.bytes / found.packed_bytes:.2f} times fewer; {share:.1%} above the entropy of its values)"
    )


def unpack(
    source: Annotated[Path, typer.Argument(metavar="ARCHIVE", help="A .tfopt file, or - for standard input.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The file or folder to write.")],
    as_json: Json = False,
) -> None:
    """Writes what an archive holds, bit for bit, after checking it."""
    from tfopt import archive

    written = archive.unpack(sys.stdin.buffer if str(source) == "-" else source, out)
    if as_json:
        print_json({"path": str(written)})
    else:
        typer.echo(f"{written}: every check passed")


def check(source: Path) -> tuple[dict[str, Any], Callable[[], None]]:
    """What an archive holds, and how to show it."""
    from tfopt import archive

    count = archive.check(source)
    return {"files": count}, lambda: typer.echo(f"{source}: {count} files, every check passed")
