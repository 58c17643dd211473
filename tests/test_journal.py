"""What TensorBoard gets to show of a training."""

import numpy as np
import pytest
import tensorflow as tf

import tfopt
from tfopt._keras import keras_api
from tfopt.callbacks import Journal, MagnitudePruning, QuantizationMonitor
from tfopt.errors import InputError
from tfopt.schedules import ConstantSparsity
from tfopt.train import TrainConfig, fit


def events(folder):
    """Name -> value by step, as TensorBoard reads event files."""
    found = {}
    for path in sorted(folder.glob("events*")):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                assert value.metadata.plugin_data.plugin_name == "scalars"
                found.setdefault(value.tag, {})[event.step] = float(tf.make_ndarray(value.tensor))
    return found


def data():
    x = np.random.default_rng(0).normal(size=(96, 6)).astype(np.float32)
    return tf.data.Dataset.from_tensor_slices((x, (x[:, 0] > 0).astype(np.int32))).batch(8)


def model_of(generation):
    keras = keras_api.keras_module(generation)
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [layers.Input((6,)), layers.Dense(16, "relu", name="one"), layers.Dense(2, name="two")]
    )
    return model, keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def test_figures_of_steps_passes_and_techniques(generation, tmp_path):
    model, loss = model_of(generation)
    prepared = tfopt.compress.quantize.prepare(
        model, tfopt.QuantizeConfig(weight_bits=4, activations="static", include=["one"])
    )
    pruning = MagnitudePruning(ConstantSparsity(0.5, 0, frequency=1), include=["two"])
    sources = [pruning, *prepared.callbacks]
    assert any(isinstance(s, QuantizationMonitor) for s in sources)
    model.compile("sgd", loss, metrics=["accuracy"])
    journal = Journal(tmp_path, every=5, batch_size=8, sources=sources)
    history = model.fit(data(), epochs=2, callbacks=[*sources, journal], validation_data=data(), verbose=0).history
    found = events(tmp_path)
    assert set(found["step/loss"]) == {5, 10, 15, 20} and set(found["pass/loss"]) == {12, 24}
    for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
        np.testing.assert_allclose(list(found[f"pass/{name}"].values()), history[name], rtol=1e-5)
    np.testing.assert_allclose(list(found["step/learning_rate"].values()), 0.01)
    assert all(value > 0 for value in found["step/examples_per_s"].values())
    assert found["sparsity/two/kernel"] == {12: 0.5, 24: 0.5} and found["bits/one/kernel"] == {12: 4.0, 24: 4.0}
    ranges = [name for name in found if name.startswith("range/") and name.endswith("/high")]
    assert ranges and all(found[name][24] >= found[name[:-5] + "/low"][24] for name in ranges)


def test_a_training_that_goes_on_adds_to_it(generation, tmp_path):
    model, loss = model_of(generation)
    model.compile("sgd", loss)
    for _ in range(2):
        model.fit(data(), callbacks=[Journal(tmp_path, every=4)], verbose=0)
    found = events(tmp_path)
    assert set(found["step/loss"]) == {4, 8, 12, 16, 20, 24} and set(found["pass/loss"]) == {12, 24}
    assert "step/examples_per_s" not in found


def test_bad_settings(tmp_path):
    with pytest.raises(InputError, match="every must be 1 or more, got 0"):
        Journal(tmp_path, every=0)


def test_trackers_are_told_what_a_training_does(generation, tmp_path, monkeypatch):
    """MLflow and Weights & Biases, both writing to a folder: their own readers find the figures."""
    mlflow, wandb = pytest.importorskip("mlflow"), pytest.importorskip("wandb")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    wandb.teardown()  # it reads its environment once
    model, loss = model_of(generation)
    pruning = MagnitudePruning(ConstantSparsity(0.5, 0, frequency=1), include=["two"])
    config = TrainConfig(epochs=2, batch_size=8, learning_rate=0.01, schedule="constant", warmup=0.0)

    def compiled(optimizer, **given):
        model.compile(optimizer, loss, metrics=["accuracy"], **given)

    history = fit(
        model, lambda number, skip: data(), config=config, steps=24, callbacks=[pruning], validation=data(),
        trackers=["mlflow", "wandb"], title="small", compile_with=compiled,
    )  # fmt: skip
    (run,) = mlflow.MlflowClient().search_runs(["0"])
    assert run.info.run_name == "small" and run.info.status == "FINISHED" and run.data.params["epochs"] == "2"
    for name in ("loss", "val_accuracy"):
        assert run.data.metrics[name] == pytest.approx(history[name][-1], rel=1e-5)
    assert run.data.metrics["sparsity/two/kernel"] == 0.5
    assert wandb.run is None and len(list(tmp_path.glob("wandb/offline-run-*/*.wandb"))) == 1
