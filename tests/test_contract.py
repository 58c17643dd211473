"""The contract that every technique keeps, in both generations, on one replica and on two."""

import numpy as np
import pytest

import tfopt
from tfopt import keras_api
from tfopt.compress import prune
from tfopt.schedules import ConstantSparsity
from tfopt.train.strategy import scope

TECHNIQUES = [(prune, prune.PruneConfig(ConstantSparsity(0.5, 0, frequency=1)))]


@pytest.mark.parametrize(("technique", "config"), TECHNIQUES, ids=lambda v: getattr(v, "__name__", ""))
def test_prepare_train_finish_save_reload_export(technique, config, make_bert, keras, strategy, tokens, tmp_path):
    model = make_bert(strategy)
    prepared, callbacks = technique.prepare(model, config)
    with scope(strategy):
        prepared.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    labels = np.arange(16) % 3
    prepared.fit(tokens, labels, batch_size=8, epochs=1, callbacks=callbacks, verbose=0)
    finished = technique.finish(prepared)
    assert type(finished) is type(model)
    assert {type(layer).__module__.partition(".")[0] for _, layer in keras_api.walk(finished)} == {keras.__name__}
    keras_api.save_model(finished, tmp_path / "model.keras")
    reloaded = keras_api.load_model(tmp_path / "model.keras")
    expected = np.asarray(reloaded(tokens, training=False))
    if strategy is None:
        np.testing.assert_allclose(np.asarray(finished(tokens, training=False)), expected, atol=1e-6)
    artifact = tfopt.export(reloaded, tmp_path / "m.tflite", "tflite", lengths=[12], representative=tokens)
    assert artifact.max_abs_error < 1e-5
    found = tfopt.Predictor.load(artifact.path).predict(tokens)["logits"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    kernels = [w for w in tfopt.Predictor.load(artifact.path).weights() if w.is_kernel]
    assert all(abs((w.array == 0).mean() - 0.5) < 0.01 for w in kernels) and kernels
