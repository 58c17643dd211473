"""The TFLite file format: what a file holds, and what is rewritten in it."""
