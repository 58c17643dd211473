"""Models of layers, as people write them; each takes a Keras module."""

from typing import Any

import numpy as np

from benchmarks.zoo.layers import layers_of
from benchmarks.zoo.model import ROWS, Entry, Values, ids, pictures, reals

Made = tuple[Any, Values]
NO_UNITS = {"shrink": "no two layers share units"}
WORDS = ["good", "bad", "film", "plot", "dull", "bright", "actor", "scene"]


def _words(keras: Any, **settings: Any) -> Any:
    """A table as training leaves one: of fresh ones, small models answer nearly alike to all texts."""
    start = keras.initializers.RandomNormal(stddev=1.0)
    return keras.layers.Embedding(300, 16, embeddings_initializer=start, **settings)


def mlp(keras: Any) -> Made:
    k = keras.layers
    model = keras.Sequential(
        [k.Input((20,), name="x"), k.Dense(64, "relu"), k.Dropout(0.2), k.Dense(32, "gelu"), k.Dense(5)]
    )
    return model, {"x": reals(20)}


def lenet(keras: Any) -> Made:
    k = keras.layers
    return keras.Sequential([
        k.Input((28, 28, 1), name="x"), k.Rescaling(1 / 255),
        k.Conv2D(6, 5, activation="tanh", padding="same"), k.AveragePooling2D(2),
        k.Conv2D(16, 5, activation="tanh"), k.MaxPooling2D(), k.Flatten(),
        k.Dense(84, "tanh"), k.Dense(10, "softmax"),
    ]), {"x": pictures(28, 28, 1)}  # fmt: skip


def text_transformer(keras: Any) -> Made:
    """keras.io, "Text classification with Transformer"."""
    k, own = keras.layers, layers_of(keras)
    x = inputs = k.Input((40,), dtype="int32", name="tokens")
    x = own["TokenAndPosition"](40, 500, 32)(x)
    x = own["TransformerBlock"](32, 2, 48)(x)
    x = k.Dropout(0.1)(k.GlobalAveragePooling1D()(x))
    x = k.Dropout(0.1)(k.Dense(20, "relu")(x))
    return keras.Model(inputs, k.Dense(2, "softmax")(x)), {"tokens": ids(500, 40)}


def vit(keras: Any) -> Made:
    """keras.io, "Image classification with Vision Transformer"."""
    k, own = keras.layers, layers_of(keras)
    inputs = k.Input((32, 32, 3), name="image")
    x = own["PatchEncoder"](16, 32)(own["Patches"](8)(k.Rescaling(1 / 255)(inputs)))
    for _ in range(2):
        y = k.LayerNormalization(epsilon=1e-6)(x)
        x = k.Add()([k.MultiHeadAttention(4, 32, dropout=0.1)(y, y), x])
        y = k.LayerNormalization(epsilon=1e-6)(x)
        for units in (64, 32):
            y = k.Dropout(0.1)(k.Dense(units, "gelu")(y))
        x = k.Add()([y, x])
    x = k.Dropout(0.5)(k.Flatten()(k.LayerNormalization(epsilon=1e-6)(x)))
    return keras.Model(inputs, k.Dense(10)(k.Dense(64, "gelu")(x))), {"image": pictures(32, 32)}


def own_weights(keras: Any) -> Made:
    k, own = keras.layers, layers_of(keras)
    inputs = k.Input((24,), name="x")
    return keras.Model(inputs, k.Dense(4)(k.Dense(32, "relu")(own["Gated"](48)(inputs)))), {"x": reals(24)}


def _recurrent(cell: str, both: bool = False) -> Any:
    def build(keras: Any) -> Made:
        k = keras.layers
        layer = getattr(k, cell)(24)
        inputs = k.Input((20,), dtype="int32", name="tokens")
        x = _words(keras)(inputs)
        x = k.Bidirectional(layer)(x) if both else layer(x)
        return keras.Model(inputs, k.Dense(3)(k.Dense(16, "relu")(x))), {"tokens": ids(300, 20)}

    return build


def stacked_lstm(keras: Any) -> Made:
    k = keras.layers
    inputs = k.Input((20,), dtype="int32", name="tokens")
    x = _words(keras, mask_zero=True)(inputs)
    x = k.LSTM(16)(k.LSTM(16, return_sequences=True)(x))
    return keras.Model(inputs, k.Dense(1, "sigmoid")(x)), {"tokens": ids(300, 20)}


def conv_lstm(keras: Any) -> Made:
    k = keras.layers
    inputs = k.Input((4, 12, 12, 1), name="film")
    x = k.GlobalAveragePooling2D()(k.ConvLSTM2D(6, 3)(inputs))
    return keras.Model(inputs, k.Dense(3)(x)), {"film": reals(4, 12, 12, 1)}


def time_distributed(keras: Any) -> Made:
    k = keras.layers
    inputs = k.Input((5, 12, 12, 1), name="film")
    x = k.TimeDistributed(k.Conv2D(6, 3, activation="relu"))(inputs)
    x = k.TimeDistributed(k.GlobalAveragePooling2D())(x)
    return keras.Model(inputs, k.Dense(3)(k.GRU(12)(x))), {"film": reals(5, 12, 12, 1)}


def _siamese(normalize: bool) -> Any:
    def build(keras: Any) -> Made:
        k = keras.layers
        one = k.Input((24,), name="left")
        tower = keras.Sequential([k.Input((24,)), k.Dense(48, "relu"), k.Dense(16)], name="tower")
        other = k.Input((24,), name="right")
        x = k.Dot(axes=1, normalize=normalize)([tower(one), tower(other)])
        return keras.Model([one, other], x), {"left": reals(24), "right": reals(24, seed=1)}

    return build


def many_outputs(keras: Any) -> Made:
    k = keras.layers
    number, words = k.Input((12,), name="number"), k.Input((10,), dtype="int32", name="words")
    x = k.Concatenate()([k.Dense(24, "relu")(number), k.GlobalAveragePooling1D()(k.Embedding(100, 16)(words))])
    x = k.Dense(32, "relu")(x)
    outputs = {
        "kind": k.Dense(4, "softmax", name="kind")(x),
        "yes": k.Dense(1, "sigmoid", name="yes")(x),
        "price": k.Dense(1, name="price")(x),
    }
    return keras.Model({"number": number, "words": words}, outputs), {"number": reals(12), "words": ids(100, 10)}


def attention(keras: Any) -> Made:
    k = keras.layers
    inputs = k.Input((16, 24), name="x")
    x = k.Dense(32)(inputs)
    for _ in range(2):
        x = k.LayerNormalization()(k.Add()([x, k.MultiHeadAttention(4, 8)(x, x)]))
        x = k.LayerNormalization()(k.Add()([x, k.Dense(32)(k.Dense(64, "relu")(x))]))
    return keras.Model(inputs, k.Dense(3)(k.GlobalAveragePooling1D()(x))), {"x": reals(16, 24)}


def named_mask(keras: Any) -> Made:
    """A transformer of open length whose mask has a name of its own."""
    k = keras.layers
    tokens, mask = k.Input((None,), dtype="int32", name="tokens"), k.Input((None,), name="is_text")
    x = k.Embedding(200, 32)(tokens)
    see = k.Reshape((1, -1))(mask)
    x = k.LayerNormalization()(k.Add()([x, k.MultiHeadAttention(4, 8)(x, x, attention_mask=see)]))
    x = k.LayerNormalization()(k.Add()([x, k.Dense(32)(k.Dense(64, "gelu")(x))]))
    x = k.Dot(axes=1)([x, mask])
    text = ids(200, 16)
    return keras.Model({"tokens": tokens, "is_text": mask}, k.Dense(3)(x)), {
        "tokens": text,
        "is_text": (text > 0).astype(np.float32),
    }


def old_attention(keras: Any) -> Made:
    k = keras.layers
    query, value = k.Input((8,), dtype="int32", name="query"), k.Input((12,), dtype="int32", name="value")
    table = k.Embedding(200, 24)
    q, v = (k.Conv1D(24, 3, padding="same", activation="relu")(table(x)) for x in (query, value))
    x = k.Concatenate()([k.GlobalAveragePooling1D()(q), k.GlobalMaxPooling1D()(k.Attention()([q, v]))])
    return keras.Model([query, value], k.Dense(3)(x)), {"query": ids(200, 8), "value": ids(200, 12, seed=1)}


def conv1d(keras: Any) -> Made:
    k = keras.layers
    inputs = k.Input((32,), dtype="int32", name="tokens")
    x = k.Conv1D(24, 5, activation="relu")(_words(keras)(inputs))
    x = k.GlobalMaxPooling1D()(k.SeparableConv1D(32, 3, activation="relu")(k.MaxPooling1D(2)(x)))
    return keras.Model(inputs, k.Dense(1, "sigmoid")(k.Dense(16, "relu")(x))), {"tokens": ids(300, 32)}


def residual(keras: Any) -> Made:
    k = keras.layers
    inputs = k.Input((24, 24, 3), name="image")
    x = k.ReLU()(
        k.BatchNormalization()(
            k.Conv2D(16, 3, padding="same", use_bias=False)(k.Rescaling(1 / 127.5, offset=-1.0)(inputs))
        )
    )
    for width in (16, 24):
        y = k.Conv2D(width, 3, padding="same", use_bias=False)(x)
        y = k.Conv2D(width, 3, padding="same")(k.ReLU(max_value=6.0)(k.BatchNormalization()(y)))
        x = k.Activation("relu")(k.Add()([k.Conv2D(width, 1)(x), y]))
        x = k.MaxPooling2D()(x)
    return keras.Model(inputs, k.Dense(5)(k.GlobalAveragePooling2D()(x))), {"image": pictures(24, 24)}


def unet(keras: Any) -> Made:
    k = keras.layers
    inputs = k.Input((32, 32, 3), name="image")
    a = k.Conv2D(8, 3, padding="same", activation="relu")(k.Rescaling(1 / 255)(inputs))
    b = k.SeparableConv2D(16, 3, padding="same", activation="relu")(k.MaxPooling2D()(a))
    c = k.Conv2D(24, 3, padding="same", activation="relu", dilation_rate=2)(k.MaxPooling2D()(b))
    d = k.Concatenate()([k.Conv2DTranspose(16, 2, strides=2)(c), b])
    e = k.Concatenate()([k.Conv2D(8, 3, padding="same")(k.UpSampling2D()(d)), a])
    return keras.Model(inputs, k.Conv2D(3, 1, activation="softmax")(e)), {"image": pictures(32, 32)}


def autoencoder(keras: Any) -> Made:
    k = keras.layers
    encoder = keras.Sequential(
        [
            k.Input((16, 16, 1)),
            k.Conv2D(8, 3, strides=2, padding="same", activation="relu"),
            k.Flatten(),
            k.Dense(12),
        ],
        name="encoder",
    )
    decoder = keras.Sequential(
        [
            k.Input((12,)),
            k.Dense(512, "relu"),
            k.Reshape((8, 8, 8)),
            k.Conv2DTranspose(1, 3, strides=2, padding="same", activation="sigmoid"),
        ],
        name="decoder",
    )
    inputs = k.Input((16, 16, 1), name="image")
    return keras.Model(inputs, decoder(encoder(k.Rescaling(1 / 255)(inputs)))), {"image": pictures(16, 16, 1)}


def convolutions_3d(keras: Any) -> Made:
    k = keras.layers
    inputs = k.Input((6, 12, 12, 1), name="scan")
    x = k.GlobalAveragePooling3D()(
        k.Conv3D(12, 3, activation="relu")(
            k.MaxPooling3D((1, 2, 2))(k.Conv3D(8, 3, padding="same", activation="relu")(inputs))
        )
    )
    return keras.Model(inputs, k.Dense(3)(x)), {"scan": reals(6, 12, 12, 1)}


def rectangle(keras: Any) -> Made:
    """Pictures of any size."""
    k = keras.layers
    inputs = k.Input((None, None, 3), name="image")
    x = k.Conv2D(16, 3, padding="same", activation="relu")(k.Rescaling(1 / 255)(inputs))
    x = k.DepthwiseConv2D(3, padding="same")(k.MaxPooling2D()(x))
    return keras.Model(inputs, k.Dense(4)(k.GlobalAveragePooling2D()(x))), {"image": pictures(24, 24)}


def activations(keras: Any) -> Made:
    k = keras.layers
    x = inputs = k.Input((20,), name="x")
    for name in (
        "relu",
        "elu",
        "selu",
        "softplus",
        "softsign",
        "tanh",
        "sigmoid",
        "swish",
        "gelu",
        "relu6",
        "hard_sigmoid",
        "exponential",
    ):
        x = k.Activation(name)(k.Dense(24)(x))
        x = k.LayerNormalization()(x)
    for layer in (k.LeakyReLU(), k.PReLU(), k.ELU(), k.ReLU(), k.Softmax()):
        x = layer(k.Dense(24)(x))
    return keras.Model(inputs, k.Dense(3)(x)), {"x": reals(20)}


def norms(keras: Any) -> Made:
    k = keras.layers
    x = inputs = k.Input((12, 12, 8), name="x")
    for layer in (
        k.BatchNormalization(),
        k.LayerNormalization(),
        k.GroupNormalization(groups=4),
        k.UnitNormalization(),
    ):
        x = layer(k.Conv2D(8, 3, padding="same", activation="relu")(x))
    return keras.Model(inputs, k.Dense(3)(k.Flatten()(x))), {"x": reals(12, 12, 8)}


def wide_and_deep(keras: Any) -> Made:
    k = keras.layers
    numbers, kind = k.Input((8,), name="numbers"), k.Input((1,), dtype="int32", name="kind")
    deep = k.Concatenate()(
        [k.Normalization(mean=0.0, variance=1.0)(numbers), k.Flatten()(k.Embedding(30, 8)(kind))]
    )
    wide = k.CategoryEncoding(30, output_mode="one_hot")(kind)
    x = k.Concatenate()([wide, k.Dense(16, "relu")(k.Dense(32, "relu")(deep))])
    return keras.Model([numbers, kind], k.Dense(1)(x)), {
        "numbers": reals(8),
        "kind": np.random.default_rng(0).integers(0, 30, (ROWS, 1)).astype(np.int32),
    }


def tied_table(keras: Any) -> Made:
    """A table that is looked up and multiplied."""
    k = keras.layers
    inputs = k.Input((12,), dtype="int32", name="tokens")
    table = k.Embedding(100, 24)
    x = table(inputs)
    x = k.LayerNormalization()(k.Add()([x, k.Dense(24)(k.Dense(48, "gelu")(x))]))
    if keras.__name__ == "keras":
        logits = keras.ops.matmul(x, keras.ops.transpose(table(np.arange(100, dtype="int32"))))
    else:
        import tensorflow as tf

        logits = tf.matmul(x, table.embeddings, transpose_b=True)
    return keras.Model(inputs, logits), {"tokens": ids(100, 12)}


def text_in(keras: Any) -> Made:
    k = keras.layers
    inputs = k.Input((1,) if keras.__name__ == "tf_keras" else (), dtype="string", name="text")
    split = k.TextVectorization(50, output_sequence_length=10, vocabulary=WORDS)
    x = k.GlobalAveragePooling1D()(k.Embedding(50, 16)(split(inputs)))
    rng = np.random.default_rng(0)
    texts = np.array([" ".join(rng.choice(WORDS, 6)) for _ in range(ROWS)], object)
    return keras.Model(inputs, k.Dense(2)(k.Dense(16, "relu")(x))), {
        "text": texts[:, None] if keras.__name__ == "tf_keras" else texts
    }


def string_lookup(keras: Any) -> Made:
    k = keras.layers
    inputs, number = k.Input((1,), dtype="string", name="word"), k.Input((4,), name="number")
    x = k.Flatten()(k.Embedding(20, 8)(k.StringLookup(vocabulary=WORDS)(inputs)))
    x = k.Concatenate()([x, number])
    words = np.random.default_rng(0).choice(WORDS, (ROWS, 1)).astype(object)
    return keras.Model([inputs, number], k.Dense(2)(k.Dense(16, "relu")(x))), {"word": words, "number": reals(4)}


def records(keras: Any) -> Made:
    k, rng = keras.layers, np.random.default_rng(0)
    values = {
        "age": 54 + 9 * reals(1), "pressure": 130 + 20 * reals(1, seed=1), "thal": rng.choice(WORDS[:3], (ROWS, 1)),
        "pain": rng.integers(0, 4, (ROWS, 1)), "vessels": rng.choice([10, 20, 30], (ROWS, 1)),
    }  # fmt: skip
    values["thal"] = values["thal"].astype(object)
    inputs = {
        name: k.Input((1,), name=name, dtype="string" if v.dtype == object else str(v.dtype))
        for name, v in values.items()
    }
    normalize = k.Normalization()
    normalize.adapt(values["age"])
    parts = [
        normalize(inputs["age"]),
        k.Discretization([110.0, 125.0, 140.0], output_mode="one_hot")(inputs["pressure"]),
        k.StringLookup(vocabulary=WORDS[:3], output_mode="one_hot")(inputs["thal"]),
        k.CategoryEncoding(4, output_mode="one_hot")(inputs["pain"]),
        k.IntegerLookup(vocabulary=[10, 20, 30], output_mode="one_hot")(inputs["vessels"]),
    ]
    x = k.Dropout(0.5)(k.Dense(32, "relu")(k.Concatenate()(parts)))
    return keras.Model(inputs, k.Dense(1, "sigmoid")(x)), values


def bag_of_words(keras: Any) -> Made:
    k = keras.layers
    inputs = k.Input((1,) if keras.__name__ == "tf_keras" else (), dtype="string", name="text")
    split = k.TextVectorization(200, ngrams=2, output_mode="tf_idf", pad_to_max_tokens=True)
    rng = np.random.default_rng(0)
    texts = np.array([" ".join(rng.choice(WORDS, 6)) for _ in range(ROWS)], object)
    split.adapt(texts.astype(str))
    return keras.Model(inputs, k.Dense(2)(k.Dense(16, "relu")(split(inputs)))), {
        "text": texts[:, None] if keras.__name__ == "tf_keras" else texts
    }


def _mixed(policy: str) -> Any:
    def build(keras: Any) -> Made:
        k = keras.layers
        inputs = k.Input((16, 24), name="x")
        x = k.Dense(32, dtype=policy)(inputs)
        x = k.Add(dtype=policy)([x, k.MultiHeadAttention(4, 8, dtype=policy)(x, x)])
        x = k.LayerNormalization(dtype=policy)(x)
        x = k.Dense(32, dtype=policy)(k.Dense(64, "relu", dtype=policy)(x))
        return keras.Model(inputs, k.Dense(3, dtype="float32")(k.GlobalAveragePooling1D(dtype=policy)(x))), {
            "x": reals(16, 24)
        }

    return build


def float16(keras: Any) -> Made:
    before = keras.backend.floatx()
    try:
        keras.backend.set_floatx("float16")
        return mlp(keras)[0], {"x": reals(20).astype(np.float16)}
    finally:
        keras.backend.set_floatx(before)


def with_lambda(keras: Any) -> Made:
    k = keras.layers
    inputs = k.Input((20,), name="x")
    x = k.Lambda(lambda v: v * v, output_shape=(64,))(k.Dense(64, "relu")(inputs))
    return keras.Model(inputs, k.Dense(5)(x)), {"x": reals(20)}


def subclassed(keras: Any) -> Made:
    k = keras.layers

    @keras.saving.register_keras_serializable(package="zoo")
    class Small(keras.Model):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.hidden, self.logits = k.Dense(64, "relu"), k.Dense(5)

        def call(self, x: Any) -> Any:
            return self.logits(self.hidden(x))

    model = Small()
    model(reals(20))
    return model, {"inputs": reals(20)}


def moe(keras: Any) -> Made:
    """Two experts, weighted by a gate; models within a model."""
    k = keras.layers
    inputs = k.Input((20,), name="x")
    experts = [
        keras.Sequential([k.Input((20,)), k.Dense(32, "relu"), k.Dense(12)], name=f"expert{i}")(inputs)
        for i in range(2)
    ]
    gate = k.Dense(2, "softmax")(inputs)
    x = k.Dot(axes=1)([k.Reshape((2, 1))(gate), k.Concatenate(axis=1)([k.Reshape((1, 12))(e) for e in experts])])
    return keras.Model(inputs, k.Dense(4)(k.Flatten()(x))), {"x": reals(20)}


def squeeze_excite(keras: Any) -> Made:
    k = keras.layers
    inputs = k.Input((20, 20, 3), name="image")
    x = k.Conv2D(16, 3, padding="same", activation="relu")(inputs)
    s = k.Dense(16, "sigmoid")(k.Dense(4, "relu")(k.GlobalAveragePooling2D(keepdims=True)(x)))
    x = k.Conv2D(24, 3, activation="relu")(k.Multiply()([x, s]))
    return keras.Model(inputs, k.Dense(3)(k.GlobalMaxPooling2D()(x))), {"image": pictures(20, 20)}


ENTRIES = [
    Entry("mlp", mlp),
    Entry("lenet", lenet),
    Entry("text_transformer", text_transformer),
    Entry("vit", vit),
    Entry("own_weights", own_weights),
    Entry("lstm", _recurrent("LSTM")),
    Entry("bilstm", _recurrent("LSTM", both=True)),
    Entry("gru", _recurrent("GRU")),
    Entry("simple_rnn", _recurrent("SimpleRNN")),
    Entry("stacked_lstm", stacked_lstm, senseless=NO_UNITS),
    Entry("conv_lstm", conv_lstm, senseless=NO_UNITS),
    Entry("time_distributed", time_distributed, senseless=NO_UNITS),
    Entry("siamese", _siamese(False)),
    Entry("siamese_cosine", _siamese(True)),
    Entry("many_outputs", many_outputs),
    Entry("attention", attention),
    Entry("named_mask", named_mask, lengths=(16,)),
    Entry("old_attention", old_attention, senseless=NO_UNITS),
    Entry("conv1d", conv1d),
    Entry("residual", residual),
    Entry("unet", unet),
    Entry("autoencoder", autoencoder),
    Entry("convolutions_3d", convolutions_3d),
    Entry("rectangle", rectangle, lengths=(24,)),
    Entry("activations", activations),
    Entry("norms", norms),
    Entry("wide_and_deep", wide_and_deep),
    Entry("tied_table", tied_table),
    Entry("text_in", text_in),
    Entry("string_lookup", string_lookup),
    Entry("records", records),
    Entry("bag_of_words", bag_of_words),
    Entry("mixed_float16", _mixed("mixed_float16")),
    Entry("mixed_bfloat16", _mixed("mixed_bfloat16")),
    Entry("float16", float16),
    Entry("lambda", with_lambda, senseless={"shrink": "a function of anybody's is between the layers"}),
    Entry("subclassed", subclassed),
    Entry("moe", moe),
    Entry("squeeze_excite", squeeze_excite),
]
