"""Measurements against named peers; each script prints ratios and writes a small JSON file."""
