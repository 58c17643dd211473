"""`python -m tfopt`."""

from tfopt.cli import entry

entry()
