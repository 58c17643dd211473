"""Keras files, run with `model.predict` as their owners run them."""

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt._keras import extras, keras_api
from tfopt._keras.custom import register_classes
from tfopt._keras.input_facts import masks_of, rows_of_tables, size_to_try
from tfopt._keras.keras_io import inputs_of, output_names
from tfopt._keras.loading import load_model
from tfopt.decoding.weights import is_causal_lm, is_seq2seq
from tfopt.runtime.described import Described, masks_by_name
from tfopt.runtime.eager_decoder import EagerDecoder
from tfopt.runtime.eager_seq2seq import EagerSeq2SeqDecoder
from tfopt.runtime.predictor import Predictor, Signature, StoredWeight
from tfopt.runtime.saved_model import set_threads


class KerasPredictor(Predictor):
    """A `.keras` or `.h5` file of either generation."""

    format = "keras"
    _refusals = (tf.errors.InvalidArgumentError, ValueError)

    def _open(self, threads: int | None) -> list[Signature]:
        set_threads(threads)
        register_classes(self.imports)
        self.model = load_model(self.path, trust=self.trust)
        self._inputs, self.members = inputs_of(self.model), extras.of(self.model)
        # Keras 3 counts an id below zero from the end of its table.
        rows = rows_of_tables(self.model, self._inputs)
        specs = {n: (tuple(s.shape), np.dtype(s.dtype.as_numpy_dtype)) for n, s in self._inputs.specs.items()}
        masks = masks_by_name(specs)
        if not masks and len(specs) > 1:
            masks = masks_of(self.model, self._inputs, size_to_try(self.model, self._inputs), rows=rows)
        self.described = Described(rows, masks)
        return [Signature("predict", specs, {})]

    def _run(self, signature: Signature, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        rows = len(next(iter(inputs.values())))
        value: Any = self.model.predict(self._inputs.arguments(inputs), batch_size=rows, verbose=0)
        if isinstance(value, dict):
            return value
        values = list(value) if isinstance(value, list | tuple) else [value]
        return dict(zip(output_names(self.model, len(values)), values, strict=True))

    def make_decoder(self) -> Any:
        if is_seq2seq(self.model):
            return EagerSeq2SeqDecoder(self.model)
        if not is_causal_lm(self.model):
            return super().make_decoder()
        return EagerDecoder(self.model)

    def weights(self) -> list[StoredWeight]:
        return [
            StoredWeight(w.path, array.dtype.itemsize * 8, array, is_kernel=w.name != "embeddings")
            for w in keras_api.weights(self.model)
            if (array := keras_api.to_numpy(w.variable)).ndim >= 2
        ]


def predictor_of(path: Path) -> type[Predictor]:
    """What runs a file of this format."""
    return KerasPredictor
