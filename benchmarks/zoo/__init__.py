"""Models as others write and import them, and every operation tried on each: `python -m benchmarks.zoo`."""
