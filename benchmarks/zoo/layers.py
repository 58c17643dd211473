"""Custom layers as examples of keras.io have them; written for both generations."""

from typing import Any


def layers_of(keras: Any) -> dict[str, type]:
    """The classes, derived from a Keras module's `Layer` and registered there."""
    register = keras.saving.register_keras_serializable(package="zoo")

    @register
    class TokenAndPosition(keras.layers.Layer):
        """Tables of tokens and of places, added."""

        def __init__(self, length: int, vocabulary: int, width: int, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.length, self.vocabulary, self.width = length, vocabulary, width
            self.tokens = keras.layers.Embedding(vocabulary, width)
            self.places = keras.layers.Embedding(length, width)

        def build(self, shape: Any) -> None:
            self.tokens.build(shape)
            self.places.build((self.length,))
            self.built = True

        def call(self, x: Any) -> Any:
            import tensorflow as tf

            return self.tokens(x) + self.places(tf.range(x.shape[-1]))

        def get_config(self) -> dict[str, Any]:
            sizes = {"length": self.length, "vocabulary": self.vocabulary, "width": self.width}
            return {**super().get_config(), **sizes}

    @register
    class TransformerBlock(keras.layers.Layer):
        """Attention and two dense layers in a `Sequential`, with dropout and norms."""

        def __init__(self, width: int, heads: int, hidden: int, rate: float = 0.1, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.width, self.heads, self.hidden, self.rate = width, heads, hidden, rate
            self.attention = keras.layers.MultiHeadAttention(heads, width)
            self.ffn = keras.Sequential([keras.layers.Dense(hidden, activation="relu"), keras.layers.Dense(width)])
            self.norm1, self.norm2 = (keras.layers.LayerNormalization(epsilon=1e-6) for _ in range(2))
            self.dropout1, self.dropout2 = keras.layers.Dropout(rate), keras.layers.Dropout(rate)

        def call(self, x: Any, training: Any = None) -> Any:
            x = self.norm1(x + self.dropout1(self.attention(x, x), training=training))
            return self.norm2(x + self.dropout2(self.ffn(x), training=training))

        def get_config(self) -> dict[str, Any]:
            sizes = {"width": self.width, "heads": self.heads, "hidden": self.hidden, "rate": self.rate}
            return {**super().get_config(), **sizes}

    @register
    class Patches(keras.layers.Layer):
        """Cuts pictures into patches."""

        def __init__(self, size: int, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.size = size

        def call(self, images: Any) -> Any:
            import tensorflow as tf

            step = [1, self.size, self.size, 1]
            found = tf.image.extract_patches(images, step, step, rates=[1, 1, 1, 1], padding="VALID")
            return tf.reshape(found, [-1, found.shape[1] * found.shape[2], found.shape[3]])

        def compute_output_shape(self, shape: Any) -> Any:
            return shape[0], (shape[1] // self.size) * (shape[2] // self.size), self.size**2 * shape[3]

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "size": self.size}

    @register
    class PatchEncoder(keras.layers.Layer):
        """Projects patches and adds their places."""

        def __init__(self, count: int, width: int, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.count, self.width = count, width
            self.projection = keras.layers.Dense(width)
            self.places = keras.layers.Embedding(count, width)

        def build(self, shape: Any) -> None:
            self.projection.build(shape)
            self.places.build((self.count,))
            self.built = True

        def call(self, patches: Any) -> Any:
            import tensorflow as tf

            return self.projection(patches) + self.places(tf.range(self.count)[None])

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "count": self.count, "width": self.width}

    @register
    class Gated(keras.layers.Layer):
        """A layer with weights of its own, and no layer inside."""

        def __init__(self, units: int, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.units = units

        def build(self, shape: Any) -> None:
            self.value = self.add_weight(name="value", shape=(shape[-1], self.units), initializer="glorot_uniform")
            self.gate = self.add_weight(name="gate", shape=(shape[-1], self.units), initializer="glorot_uniform")

        def call(self, x: Any) -> Any:
            import tensorflow as tf

            return tf.matmul(x, self.value) * tf.sigmoid(tf.matmul(x, self.gate))

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "units": self.units}

    return {c.__name__: c for c in (TokenAndPosition, TransformerBlock, Patches, PatchEncoder, Gated)}
