"""Techniques that make a Keras model smaller; each is one module, none imports another."""
