"""Models whose units depend on each other in different ways."""

from tfopt.models import BertConfig, CausalLMConfig, bert, causal_lm


def encoder(keras):
    config = BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=24, hidden_dropout_prob=0.1,
    )  # fmt: skip
    return bert(config, 3, generation=keras.__name__)


def llama(keras):
    """Grouped heads, rotary positions, a gate, a tied output."""
    config = CausalLMConfig(
        60,
        32,
        3,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=24,
        end_tokens=(1,),
    )
    return causal_lm(config, keras.__name__)


def gpt2(keras):
    config = CausalLMConfig(
        60, 32, 3, num_attention_heads=4, intermediate_size=64, max_position_embeddings=24, positions="learned", norm="layer", gated=False,
        attention_bias=True, output_bias=True, hidden_act="gelu_tanh",
    )  # fmt: skip
    return causal_lm(config, keras.__name__)


def attention(keras):
    """Keras's own attention, einsum layers, adds."""
    layers = keras.layers
    inputs = layers.Input((10, 16))
    x = layers.Dense(32)(inputs)
    for _ in range(3):
        x = layers.LayerNormalization()(layers.Add()([x, layers.MultiHeadAttention(4, 8)(x, x)]))
        h = layers.EinsumDense("abc,cd->abd", (None, 64), bias_axes="d", activation="relu")(x)
        x = layers.LayerNormalization()(layers.Add()([x, layers.Dense(32)(h)]))
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))


def convolutions(keras):
    """A residual sum, batch norms, depthwise kernels, flattening."""
    layers = keras.layers
    inputs = layers.Input((12, 12, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same", use_bias=False)(inputs)))
    y = layers.Conv2D(8, 1)(layers.DepthwiseConv2D(3, padding="same")(x))
    x = layers.MaxPooling2D()(layers.Add()([x, y]))
    x = layers.Flatten()(layers.Conv2D(12, 3, activation="relu")(x))
    return keras.Model(inputs, layers.Dense(3)(layers.Dropout(0.1)(layers.Dense(20, activation="gelu")(x))))


def nested(keras):
    layers = keras.layers
    inner = keras.Sequential([layers.Input((16,)), layers.Dense(24, activation="relu"), layers.Dense(16)])
    inputs = layers.Input((16,))
    return keras.Model(inputs, layers.Dense(3)(inner(inner(inputs))))


SHARES = {
    encoder: {"heads": 0.5, "neurons": 0.5}, llama: {"heads": 0.5, "neurons": 0.25},
    gpt2: {"heads": 0.25, "neurons": 0.5}, attention: {"heads": 0.5, "neurons": 0.75},
    convolutions: {"channels": 0.5, "neurons": 0.5}, nested: {"neurons": 0.5},
}  # fmt: skip
