"""Weight clustering in both generations, alone and together with the rest."""

import numpy as np
import pytest

import tfopt
from tfopt._keras import keras_api
from tfopt.callbacks import MagnitudePruning, WeightClustering
from tfopt.errors import InputError
from tfopt.numerics.clusters import kmeans, nearest
from tfopt.schedules import ConstantSparsity

from .quantized_models import KINDS, trained


@pytest.mark.parametrize("clusters", [2, 5, 16, 64])
def test_kmeans_is_a_local_optimum(clusters):
    values = np.random.default_rng(0).standard_normal(3000).astype(np.float32)
    centers = kmeans(values, clusters)
    index = nearest(values, centers)
    assert len(centers) <= clusters and (np.diff(centers) > 0).all()
    distances = np.abs(values[:, None] - centers)
    np.testing.assert_allclose(distances[np.arange(3000), index], distances.min(1))
    even = np.linspace(values.min(), values.max(), clusters)
    error, error_even = ((values - c[nearest(values, c)]) ** 2 for c in (centers, even))
    assert error.mean() < error_even.mean()


def test_few_values_give_themselves():
    values = np.array([3.0, 1.0, 1.0, 2.0], np.float32)
    np.testing.assert_array_equal(kmeans(values, 3), [1, 2, 3])
    assert (np.isin(values, kmeans(values, 8))).all()
    np.testing.assert_array_equal(kmeans(np.ones(4), 3), [1])


def kernels(model):
    return [keras_api.to_numpy(w.variable) for w in keras_api.weights(model) if w.name.endswith("kernel")]


@pytest.mark.parametrize("kind", ["dense", "conv", "subclassed"])
def test_values_stay_few_and_train_on(kind, keras):
    model, x = KINDS[kind](keras)
    model.compile(keras.optimizers.Adam(1e-2), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    tfopt.cluster(model, 6)
    before = kernels(model)
    model.fit(x, np.arange(48) % 3, epochs=3, verbose=0, callbacks=[WeightClustering(6)])
    for old, new in zip(before, kernels(model), strict=True):
        assert len(np.unique(new)) <= 6 and np.abs(new - old).max() > 1e-5
        assert all(len(np.unique(new[old == value])) == 1 for value in np.unique(old))  # clusters move as one


def test_together_with_pruning_and_quantization(keras, tmp_path):
    model, x = trained(keras, "dense", epochs=0)
    tfopt.prune(model, 0.5)
    pruning = MagnitudePruning(ConstantSparsity(0.5, 0, frequency=1))
    model.fit(x, np.arange(48) % 3, epochs=2, verbose=0, callbacks=[pruning, WeightClustering(8)])
    for kernel in kernels(model):
        assert len(np.unique(kernel)) <= 8 and abs((kernel == 0).mean() - 0.5) < 0.02
    artifact = tfopt.export(model, tmp_path / "m.tflite", format="tflite", quantization="dynamic_int8")
    stored = [w for w in tfopt.Predictor.load(artifact.path).weights() if w.is_kernel]
    assert all(len(np.unique(row)) <= 8 for w in stored for row in w.array)


def test_toolkit_agrees_on_what_clustering_is():
    """The toolkit's wrapped layers, stripped, hold as many values, and ours lose no more to it."""
    toolkit = pytest.importorskip("tensorflow_model_optimization").clustering.keras
    keras = keras_api.keras_module("tf_keras")
    model, _ = KINDS["dense"](keras)
    original = kernels(model)
    theirs = toolkit.strip_clustering(
        toolkit.cluster_weights(model, 8, toolkit.CentroidInitialization.KMEANS_PLUS_PLUS)
    )
    toolkit_kernels = kernels(theirs)
    model, _ = KINDS["dense"](keras)  # the toolkit takes the first one's layers over
    for weight, value in zip([w for w in keras_api.weights(model) if w.name == "kernel"], original, strict=False):
        weight.variable.assign(value)
    tfopt.cluster(model, 8)
    for value, one, other in zip(original, kernels(model), toolkit_kernels, strict=True):
        assert len(np.unique(one)) <= 8 and len(np.unique(other)) <= 8
        assert ((one - value) ** 2).mean() <= 1.05 * ((other - value) ** 2).mean()


def test_bad_arguments(keras):
    model, _ = KINDS["dense"](keras)
    with pytest.raises(InputError, match="clusters must be 2 or more, got 1"):
        tfopt.cluster(model, 1)
    with pytest.raises(InputError, match="include and exclude contradict"):
        tfopt.cluster(model, 4, include="Dense", exclude="Dense")
    kernel = model.layers[1].kernel
    kernel.assign(np.full(tuple(kernel.shape), np.nan, np.float32))
    with pytest.raises(InputError, match=r"weight 'dense[_0-9]*/kernel' holds NaN or infinity"):
        tfopt.cluster(model, 4)
