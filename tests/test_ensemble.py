"""Several models as one, and one layer as many."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

import tfopt
from tests.conftest import TINY
from tfopt._keras import devices as of_devices
from tfopt._keras import keras_api
from tfopt.errors import InputError
from tfopt.models import bert, ensemble, save_pretrained
from tfopt.models.encoder import encoder_config
from tfopt.parallel.split import split

SHARED = dataclasses.replace(TINY, num_hidden_layers=4, shared_layers=True, hidden_dropout_prob=0.0)


def models(generation, count=3, **kwargs):
    found = []
    for seed in range(count):
        keras_api.keras_module(generation).utils.set_random_seed(seed)
        found.append(bert(TINY, generation=generation, **(kwargs or {"num_labels": 3})))
    return found


def test_predictions_are_averaged(generation, tokens):
    members = models(generation)
    found = ensemble(members)
    expected = np.mean([member(tokens) for member in members], 0)
    np.testing.assert_allclose(found(tokens), expected, atol=1e-6)
    assert not found.trainable_variables
    assert all(member.trainable_variables for member in members), "the members are as they were"


def test_predictions_of_several_outputs(generation, tokens):
    members = models(generation, heads={"a": 2, "b": 3})
    found = ensemble(members)(tokens)
    for name in ("a", "b"):
        np.testing.assert_allclose(found[name], np.mean([m(tokens)[name] for m in members], 0), atol=1e-6)


def test_weights_are_averaged(generation):
    members = models(generation)
    for weight, *others in zip(
        *(keras_api.weights(m) for m in [ensemble(members, by="weights"), *members]), strict=True
    ):
        mean = np.mean([keras_api.to_numpy(other.variable) for other in others], 0)
        np.testing.assert_allclose(keras_api.to_numpy(weight.variable), mean, atol=1e-7, err_msg=weight.path)


def test_an_ensemble_teaches(generation, tokens):
    student, teacher = models(generation, 1)[0], ensemble(models(generation, 2))
    distiller = tfopt.Distiller(student, teacher)
    distiller.compile("adam")
    data = tf.data.Dataset.from_tensor_slices((tokens, np.zeros(16, np.int64))).batch(8)
    history = distiller.model.fit(distiller.teach(data), epochs=8, verbose=0).history["loss"]
    assert history[-1] < history[0]


def test_what_does_not_fit_together_is_refused(generation):
    one, other = models(generation, 2)
    with pytest.raises(InputError, match="two models or more, got 1"):
        ensemble([one])
    with pytest.raises(InputError, match="by must be 'predictions' or 'weights'"):
        ensemble([one, other], by="votes")
    with pytest.raises(InputError, match="outputs of different shapes"):
        ensemble([one, bert(TINY, 5, generation=generation)])
    with pytest.raises(InputError, match="have different weights, 'logits/bias'"):
        ensemble([one, bert(TINY, 5, generation=generation)], by="weights")
    keras = keras_api.keras_module(generation)
    with pytest.raises(InputError, match="take different inputs"):
        ensemble([one, keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(3)])])
    with pytest.raises(InputError, match="of one Keras generation"):
        ensemble([bert(TINY, 3, generation=g) for g in keras_api.GENERATIONS])


def test_layers_share_their_weights(generation, tokens, tmp_path):
    keras_api.keras_module(generation).utils.set_random_seed(0)
    shared = bert(SHARED, 3, generation=generation)
    apart = bert(dataclasses.replace(SHARED, shared_layers=False), 3, generation=generation)
    ours = {w.path: w for w in keras_api.weights(shared)}
    for weight in keras_api.weights(apart):
        layer, _, rest = weight.path.partition("/")
        one = "_".join(["layer", "0", *layer.split("_")[2:]]) if layer.startswith("layer_") else layer
        weight.variable.assign(keras_api.to_numpy(ours[f"{one}/{rest}"].variable))
    np.testing.assert_allclose(shared(tokens), apart(tokens), atol=1e-5)
    count = sum(int(np.prod(w.variable.shape)) for w in ours.values() if w.path.startswith("layer_"))
    assert 4 * count == sum(
        int(np.prod(w.variable.shape)) for w in keras_api.weights(apart) if w.path.startswith("layer_")
    )
    sizes = {}
    other = bert(dataclasses.replace(SHARED, shared_layers=False), 3, generation=generation)
    for name, model in (("shared", shared), ("other", other)):  # equal weights would be one in a file, too
        artifact = tfopt.export(model, tmp_path / f"{name}.tflite", representative=tokens, lengths=[12])
        sizes[name] = artifact.path.stat().st_size
    assert sizes["other"] - sizes["shared"] > 2.5 * 4 * count, "a file has the weights once"
    smaller = tfopt.shrink(shared, neurons=0.5)
    assert smaller(tokens).shape == (16, 3)
    with pytest.raises(InputError, match="its layers share their weights"):
        encoder_config(shared)
    with pytest.raises(InputError, match="its layers share their weights"):
        save_pretrained(shared, tmp_path / "folder")


def test_shared_layers_are_split_once(generation, tokens):
    keras_api.keras_module(generation).utils.set_random_seed(0)
    shared = bert(SHARED, 3, generation=generation)
    found = split(shared, of_devices.devices(2))
    np.testing.assert_allclose(found.model(tokens), shared(tokens), atol=1e-5)
    count = lambda model: sum(int(np.prod(v.shape)) for v in model.trainable_variables)  # noqa: E731
    assert count(found.model) == count(shared)


def test_memory_of_gpus_is_set_before_the_first_use(monkeypatch):
    told = []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["one", "other"])
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", lambda gpu, on: told.append((gpu, on)))
    monkeypatch.setattr(
        tf.config, "set_logical_device_configuration", lambda gpu, found: told.append((gpu, found[0].memory_limit))
    )
    of_devices.limit_gpu_memory("all")
    assert not told
    of_devices.limit_gpu_memory("grow")
    of_devices.limit_gpu_memory(2.0)
    assert told == [("one", True), ("other", True), ("one", 1907), ("other", 1907)], "MiB of 2 GB"

    def late(*_):
        raise RuntimeError("Physical devices cannot be modified after being initialized")

    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", late)
    with pytest.raises(InputError, match="cannot be set after TensorFlow has started"):
        of_devices.limit_gpu_memory("grow")
