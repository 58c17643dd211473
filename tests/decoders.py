"""Tiny causal language models of every family, and what is fed to them."""

import numpy as np

from tfopt._keras import keras_api
from tfopt.decoding.config import CausalLMConfig
from tfopt.models import causal_lm

_SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
          "intermediate_size": 48, "max_position_embeddings": 48}  # fmt: skip
FAMILIES = {
    "gpt2": CausalLMConfig(
        **{**_SMALL, "intermediate_size": 128}, positions="learned", norm="layer", gated=False,
        attention_bias=True, output_bias=True, hidden_act="gelu_tanh",
    ),
    "llama": CausalLMConfig(**_SMALL, num_key_value_heads=2, tie_word_embeddings=False),
    "mistral": CausalLMConfig(**_SMALL, num_key_value_heads=2, sliding_window=6, tie_word_embeddings=False),
    "qwen2": CausalLMConfig(**_SMALL, num_key_value_heads=1, attention_bias=True, rope_theta=1e6),
}  # fmt: skip


def make(family, generation="tf_keras", seed=0):
    """A model whose weights, gammas and biases included, are all random."""
    model = causal_lm(FAMILIES[family], generation)
    rng = np.random.default_rng(seed)
    for weight in keras_api.weights(model):
        shape = tuple(weight.variable.shape)
        values = rng.normal(1.0 if weight.name == "gamma" else 0.0, 0.3, shape)
        if not weight.name.startswith("moving_"):
            weight.variable.assign(values.astype(np.float32))
    return model


def logits_of(model, ids, mask=None):
    """What the model recomputes from scratch."""
    mask = np.ones_like(ids) if mask is None else mask
    return np.asarray(model({"input_ids": ids, "attention_mask": mask}, training=False))


def tokens(rows=1, length=20, seed=0):
    return np.random.default_rng(seed).integers(0, 64, (rows, length)).astype(np.int32)
