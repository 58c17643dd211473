"""Tensor mathematics without Keras."""
