"""Readers of texts with labels, a piece of a file at a time; a format is one file, all of them are in `open.py`."""
