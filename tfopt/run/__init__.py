"""Whole jobs over a model or its artifacts: a recipe run, verified, compared, looked into."""
