"""The units of a model (heads, neurons, channels, width): what belongs together, and models without some."""
