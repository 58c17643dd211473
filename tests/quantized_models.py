"""Small models of every kind that quantization must take, with data for them."""

import numpy as np
import tensorflow as tf


def dense(keras):
    layers = keras.layers
    inputs = layers.Input((24,))
    x = layers.Dense(64, activation="relu")(inputs)
    return keras.Model(inputs, layers.Dense(3)(x)), normal(24)


def conv(keras):
    layers = keras.layers
    inputs = layers.Input((12, 12, 3))
    x = layers.Conv2D(16, 3, padding="same", use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Activation("relu")(layers.DepthwiseConv2D(3, padding="same")(x))
    x = layers.MaxPooling2D()(x)
    x = layers.Add()([x, layers.Conv2D(16, 1)(x)])
    x = layers.Dense(32, activation="gelu")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, layers.Dense(3)(x)), normal(12, 12, 3)


def conv1d(keras):
    layers = keras.layers
    model = keras.Sequential([
        layers.Input((20, 8)), layers.Conv1D(16, 3, padding="same", activation="relu"),
        layers.SeparableConv1D(16, 3, padding="same"), layers.Flatten(), layers.Dense(3, activation="softmax"),
    ])  # fmt: skip
    return model, normal(20, 8)


def attention(keras):
    layers = keras.layers
    inputs = layers.Input((10, 32))
    x = layers.LayerNormalization()(inputs)
    x = layers.Add()([inputs, layers.MultiHeadAttention(2, 16)(x, x)])
    h = layers.LayerNormalization()(x)
    h = layers.EinsumDense("abc,cd->abd", output_shape=(None, 64), bias_axes="d", activation="gelu")(h)
    x = layers.Add()([x, layers.Dense(32)(h)])
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x))), normal(10, 32)


def nested(keras):
    """A model inside a model, called twice: its weights stay shared; operators and a function between layers."""
    layers = keras.layers
    inner = keras.Sequential([layers.Input((32,)), layers.Dense(64, activation="relu"), layers.Dense(32)])
    inputs = layers.Input((32,))
    x = inner(inputs) + 1.0
    x = layers.Multiply()([x, inner(x)])
    x = tf.nn.gelu(x) if keras.__name__ == "tf_keras" else keras.ops.gelu(x)
    return keras.Model(inputs, layers.Dense(3)(x)), normal(32)


def subclassed(keras):
    layers = keras.layers

    class Block(layers.Layer):
        def __init__(self):
            super().__init__()
            self.first, self.second = layers.Dense(64, activation="relu"), layers.Dense(32)
            self.norm = layers.LayerNormalization()

        def call(self, x):
            return self.norm(x + self.second(self.first(x)))

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.table, self.blocks = layers.Embedding(300, 32), [Block(), Block()]
            self.head = layers.Dense(3)

        def call(self, ids):  # says nothing of training
            x = self.table(ids)
            for block in self.blocks:
                x = block(x)
            return self.head(tf.reduce_mean(x, 1) if keras.__name__ == "tf_keras" else keras.ops.mean(x, 1))

    model, ids = Model(), np.random.default_rng(0).integers(0, 300, (48, 10)).astype(np.int32)
    model(ids)
    return model, ids


def normal(*shape):
    return np.random.default_rng(0).standard_normal((48, *shape)).astype(np.float32)


KINDS = {f.__name__: f for f in (dense, conv, conv1d, attention, nested, subclassed)}


def trained(keras, kind, prepare=lambda model: None, epochs=2):
    """A model of a kind after some training: float first, then with whatever `prepare` put into it."""
    keras.utils.set_random_seed(0)
    model, x = KINDS[kind](keras)
    labels = np.arange(len(x)) % 3
    model.compile(keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, labels, batch_size=16, epochs=1, verbose=0)
    prepare(model)
    model.compile(keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    if epochs:
        model.fit(x, labels, batch_size=16, epochs=epochs, verbose=0)
    return model, x


def signature(kind):
    """What `export` must be told about subclassed models."""
    return {"input_signature": tf.TensorSpec([None, 10], tf.int32, name="inputs")} if kind == "subclassed" else {}
