"""The contract that every technique keeps, in both generations, on one replica and on two."""

import numpy as np
import pytest

import tfopt
from tfopt import keras_api
from tfopt.compress import cluster, prune, quantize
from tfopt.schedules import ConstantSparsity
from tfopt.train.strategy import scope


def half_zero(kernel):
    return abs((kernel == 0).mean() - 0.5) < 0.01


def few_values(most):
    return lambda kernel: max(len(np.unique(row)) for row in kernel) <= most


def at_most(most):
    return lambda kernel: len(np.unique(kernel)) <= most


# Technique, configuration, and what is then true of every kernel, as (outputs, inputs).
TECHNIQUES = [
    (prune, prune.PruneConfig(ConstantSparsity(0.5, 0, frequency=1)), half_zero),
    (cluster, cluster.ClusterConfig(8), at_most(8)),
    (quantize, quantize.QuantizeConfig(weight_bits=3), few_values(7)),
    (quantize, quantize.QuantizeConfig(weight_bits=2, weight_scale="learned"), few_values(3)),
    (quantize, quantize.QuantizeConfig(activations="static", weight_bits=4, freeze_after=1), few_values(15)),
]


@pytest.mark.parametrize(("technique", "config", "holds"), TECHNIQUES, ids=lambda v: getattr(v, "__name__", ""))
def test_prepare_train_finish_save_reload_export(
    technique, config, holds, make_bert, keras, strategy, tokens, tmp_path
):
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
    stored = [w.array for w in tfopt.Predictor.load(artifact.path).weights() if w.is_kernel]
    assert stored and (technique is not prune or all(holds(kernel) for kernel in stored))
    kernels = [keras_api.to_numpy(w.variable).T for w in keras_api.weights(reloaded) if w.name == "kernel"]
    assert kernels and all(holds(kernel) for kernel in kernels)
