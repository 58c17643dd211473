"""Readers of texts with labels, a piece of a file at a time; a format is one file, all of them are in `open.py`."""

from tfopt.data.readers.open import open_source
from tfopt.data.readers.texts import Texts, json_rows, label_ids, label_names, read_documents, read_texts

__all__ = ["Texts", "json_rows", "label_ids", "label_names", "open_source", "read_documents", "read_texts"]
