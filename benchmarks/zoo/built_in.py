"""Keras's own layers that the other models do not have; each takes a Keras module."""

from typing import Any

import numpy as np

from benchmarks.zoo.model import ROWS, Entry, Values, ids, pictures, reals

Made = tuple[Any, Values]
NO_UNITS = {"shrink": "no two layers share units"}


def augmented(keras: Any) -> Made:
    """keras.io, "Image classification from scratch": the model changes its pictures while it is trained."""
    k = keras.layers
    return keras.Sequential([
        k.Input((32, 32, 3), name="image"), k.RandomFlip("horizontal"), k.RandomRotation(0.1), k.RandomZoom(0.1),
        k.RandomContrast(0.1), k.RandomTranslation(0.1, 0.1), k.Rescaling(1 / 255),
        k.Conv2D(16, 3, strides=2, activation="relu"), k.Conv2D(32, 3, activation="relu"),
        k.GlobalMaxPooling2D(), k.Dropout(0.5), k.Dense(5),
    ]), {"image": pictures(32, 32)}  # fmt: skip


def resized(keras: Any) -> Made:
    k = keras.layers
    return keras.Sequential([
        k.Input((40, 48, 3), name="image"), k.Resizing(36, 36), k.CenterCrop(32, 32), k.Rescaling(1 / 127.5, -1),
        k.Conv2D(16, 3, strides=2, activation="relu"), k.SpatialDropout2D(0.1), k.Conv2D(24, 3, activation="relu"),
        k.Cropping2D(1), k.UpSampling2D(2, interpolation="bilinear"), k.GlobalAveragePooling2D(), k.Dense(5),
    ]), {"image": pictures(40, 48)}  # fmt: skip


def spectral(keras: Any) -> Made:
    k = keras.layers
    return keras.Sequential([
        k.Input((16, 16, 3), name="image"), k.Rescaling(1 / 255),
        k.SpectralNormalization(k.Conv2D(16, 3, strides=2)), k.LeakyReLU(), k.Flatten(),
        k.SpectralNormalization(k.Dense(24)), k.LeakyReLU(), k.Dense(1),
    ]), {"image": pictures(16, 16)}  # fmt: skip


def cells(keras: Any) -> Made:
    k = keras.layers
    inputs = k.Input((12, 8), name="x")
    x = k.RNN(k.StackedRNNCells([k.GRUCell(16), k.LSTMCell(12)]), return_sequences=True)(inputs)
    return keras.Model(inputs, k.Dense(3)(k.RNN(k.SimpleRNNCell(10))(x))), {"x": reals(12, 8)}


def masked(keras: Any) -> Made:
    k = keras.layers
    inputs = k.Input((12, 6), name="x")
    x = k.LSTM(16)(k.Masking()(inputs))
    values = reals(12, 6)
    values[np.arange(12)[None] >= np.random.default_rng(0).integers(4, 13, (ROWS, 1))] = 0
    return keras.Model(inputs, k.Dense(3)(k.Dense(16, "relu")(x))), {"x": values}


def sequences(keras: Any) -> Made:
    k = keras.layers
    return keras.Sequential([
        k.Input((32, 6), name="x"), k.ZeroPadding1D(2), k.SeparableConv1D(16, 3, activation="relu"),
        k.DepthwiseConv1D(3, padding="same"), k.AveragePooling1D(2), k.Conv1DTranspose(12, 4, strides=2),
        k.Cropping1D(1), k.SpatialDropout1D(0.1), k.MaxPooling1D(2), k.UpSampling1D(2), k.Permute((2, 1)),
        k.Conv1D(8, 3, activation="relu"), k.GlobalMaxPooling1D(), k.Dense(3),
    ]), {"x": reals(32, 6)}  # fmt: skip


def volumes(keras: Any) -> Made:
    k = keras.layers
    return keras.Sequential([
        k.Input((8, 8, 8, 2), name="x"), k.ZeroPadding3D(1), k.Conv3D(8, 3, activation="relu"),
        k.UpSampling3D(2), k.Cropping3D(1), k.Conv3D(6, 3, activation="relu"),
        k.GlobalAveragePooling3D(), k.Dense(3),
    ]), {"x": reals(8, 8, 8, 2)}  # fmt: skip


def merged(keras: Any) -> Made:
    k = keras.layers
    x = inputs = k.Input((16,), name="x")
    one, two = k.Dense(24, "relu")(x), k.Dense(24, "tanh")(x)
    parts = [merge()([one, two]) for merge in (k.Average, k.Maximum, k.Minimum, k.Subtract)]
    rows = k.RepeatVector(4)(k.Concatenate()(parts))
    seen = k.AdditiveAttention()([k.Reshape((4, 24))(k.Concatenate()(parts)), k.Dense(24)(rows)])
    return keras.Model(inputs, k.Dense(3)(k.Flatten()(seen))), {"x": reals(16)}


def noisy(keras: Any) -> Made:
    k = keras.layers
    return keras.Sequential([
        k.Input((20,), name="x"), k.GaussianNoise(0.1), k.Dense(48, "selu", kernel_initializer="lecun_normal"),
        k.AlphaDropout(0.1), k.Dense(24, "selu"), k.GaussianDropout(0.1),
        k.ActivityRegularization(1e-4), k.Dense(3),
    ]), {"x": reals(20)}  # fmt: skip


def einsum(keras: Any) -> Made:
    k = keras.layers
    x = inputs = k.Input((10, 16), name="x")
    x = k.EinsumDense("abc,cde->abde", output_shape=(None, 4, 8), bias_axes="de", activation="relu")(x)
    x = k.EinsumDense("abde,dec->abc", output_shape=(None, 16), bias_axes="c")(x)
    return keras.Model(inputs, k.Dense(3)(k.GlobalAveragePooling1D()(x))), {"x": reals(10, 16)}


def locally_connected(keras: Any) -> Made:
    k = keras.layers
    return keras.Sequential([
        k.Input((12, 12, 2), name="x"), k.LocallyConnected2D(6, 3, activation="relu"), k.ThresholdedReLU(0.1),
        k.Reshape((100, 6)), k.LocallyConnected1D(4, 5, strides=5), k.Flatten(), k.Dense(3),
    ]), {"x": reals(12, 12, 2)}  # fmt: skip


def grouped_attention(keras: Any) -> Made:
    k = keras.layers
    start = keras.initializers.RandomNormal(stddev=1.0)
    inputs = k.Input((16,), dtype="int32", name="tokens")
    x = k.Embedding(300, 32, embeddings_initializer=start)(inputs)
    y = k.RMSNormalization()(x)
    x = k.Add()([x, k.GroupQueryAttention(8, 4, 2)(y, y, use_causal_mask=True)])
    x = k.Add()([x, k.Dense(32)(k.Dense(64, "silu")(k.RMSNormalization()(x)))])
    return keras.Model(inputs, k.Dense(3)(k.GlobalAveragePooling1D()(x))), {"tokens": ids(300, 16)}


def adaptive_pools(keras: Any) -> Made:
    k = keras.layers
    return keras.Sequential([
        k.Input((20, 18, 3), name="x"), k.Conv2D(12, 3, activation="relu"), k.AdaptiveAveragePooling2D((5, 4)),
        k.Conv2D(8, 3, activation="relu"), k.AdaptiveMaxPooling2D(2), k.Flatten(), k.Dense(3),
    ]), {"x": reals(20, 18, 3)}  # fmt: skip


def spectrogram(keras: Any) -> Made:
    k = keras.layers
    x = inputs = k.Input((1024, 1), name="wave")
    x = k.STFTSpectrogram(mode="log", frame_length=128, frame_step=64, fft_length=128)(x)
    x = k.GlobalAveragePooling1D()(k.Conv1D(16, 3, activation="relu")(x))
    return keras.Model(inputs, k.Dense(3)(x)), {"wave": reals(1024, 1)}


def mel_spectrogram(keras: Any) -> Made:
    k = keras.layers
    x = inputs = k.Input((2048,), name="wave")
    x = k.MelSpectrogram(fft_length=256, sequence_stride=128, num_mel_bins=24, sampling_rate=8000)(x)
    x = k.GlobalAveragePooling1D()(k.Conv1D(16, 3, activation="relu")(x))
    return keras.Model(inputs, k.Dense(3)(x)), {"wave": reals(2048)}


def hashed(keras: Any) -> Made:
    k, rng = keras.layers, np.random.default_rng(0)
    word, number = k.Input((1,), dtype="string", name="word"), k.Input((1,), dtype="int64", name="number")
    crossed = k.HashedCrossing(16, output_mode="one_hot")([word, number])
    table = k.Flatten()(k.Embedding(32, 8)(k.Hashing(32)(word)))
    x = k.Dense(16, "relu")(k.Concatenate()([crossed, table]))
    words = rng.choice(["red", "green", "blue", "grey"], (ROWS, 1)).astype(object)
    return keras.Model([word, number], k.Dense(2)(x)), {"word": words, "number": rng.integers(0, 5, (ROWS, 1))}


KERAS_3 = ("keras",)
ENTRIES = [
    Entry("augmented", augmented),
    Entry("resized", resized),
    Entry("spectral", spectral, senseless=NO_UNITS, generations=KERAS_3),
    Entry("cells", cells, senseless=NO_UNITS),
    Entry("masked", masked),
    Entry("sequences", sequences),
    Entry("volumes", volumes),
    Entry("merged", merged, senseless=NO_UNITS),
    Entry("noisy", noisy),
    Entry("einsum", einsum),
    Entry("locally_connected", locally_connected, generations=("tf_keras",)),
    Entry("grouped_attention", grouped_attention, generations=KERAS_3),
    Entry("adaptive_pools", adaptive_pools, generations=KERAS_3),
    Entry("spectrogram", spectrogram, generations=KERAS_3),
    Entry("mel_spectrogram", mel_spectrogram, generations=KERAS_3),
    Entry("hashed", hashed),
]
