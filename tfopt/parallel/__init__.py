"""One model over several devices: stages of a pipeline, and layers that are split."""
