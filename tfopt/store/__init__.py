"""Weights at any size: sharded safetensors or HDF5, read a tensor at a time, sparse, narrow or as a difference.

tfopt.store.save(model, "weights")           # or a .keras, .weights.h5 or .h5 file, or a SavedModel
tfopt.store.load(model, "weights")           # into variables, in parallel
tfopt.store.open("weights")["dense/kernel"]  # one tensor, mapped into memory
tfopt.store.convert("weights", "model.keras")
"""

from tfopt.store.conversion import convert
from tfopt.store.loading import load
from tfopt.store.reading import Store, open
from tfopt.store.writing import save

__all__ = ["Store", "convert", "load", "open", "save"]
