"""Answers of models that generate, on any runtime."""
