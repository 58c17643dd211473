"""The command line: arguments in, one of the library's functions called, its result shown."""

from tfopt.cli.app import entry, main

__all__ = ["entry", "main"]
