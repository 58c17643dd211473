"""Tiny causal language models of every family, and what is fed to them."""

import numpy as np

from tfopt._keras import keras_api
from tfopt.decoding.config import CausalLMConfig
from tfopt.models import causal_lm

_SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
          "intermediate_size": 48, "max_position_embeddings": 48}  # fmt: skip
_GEMMA = {"head_dim": 12, "hidden_act": "gelu_tanh", "embedding_scale": 32**0.5}
FAMILIES = {
    "gpt2": CausalLMConfig(
        **{**_SMALL, "intermediate_size": 128}, positions="learned", norm="layer", gated=False,
        attention_bias=True, output_bias=True, hidden_act="gelu_tanh",
    ),
    "llama": CausalLMConfig(**_SMALL, num_key_value_heads=2, tie_word_embeddings=False),
    "mistral": CausalLMConfig(**_SMALL, num_key_value_heads=2, sliding_window=6, tie_word_embeddings=False),
    "qwen2": CausalLMConfig(**_SMALL, num_key_value_heads=1, attention_bias=True, rope_theta=1e6),
    "qwen3": CausalLMConfig(**_SMALL, num_key_value_heads=2, head_dim=12, query_key_norm=True, rope_theta=1e6),
    "smollm3": CausalLMConfig(**_SMALL, num_key_value_heads=2, unrotated_layers=(1,), rope_theta=5e6),
    "gemma": CausalLMConfig(**_SMALL, num_key_value_heads=1, **_GEMMA),
    "gemma2": CausalLMConfig(
        **_SMALL, num_key_value_heads=2, **_GEMMA, post_norms=True, query_scale=12**-0.5, attention_softcap=50.0,
        logit_softcap=30.0, sliding_window=6, full_layers=(1,),
    ),
    "gemma3_text": CausalLMConfig(
        **{**_SMALL, "num_hidden_layers": 6}, num_key_value_heads=1, **_GEMMA, post_norms=True, query_scale=12**-0.5,
        query_key_norm=True, sliding_window=6, full_layers=(5,), rope_theta=1e6, local_rope_theta=1e4,
    ),
}  # fmt: skip


def make(family, generation="tf_keras", seed=0):
    """A model of a family or a shape, whose weights, gammas and biases included, are all random."""
    model = causal_lm(family if isinstance(family, CausalLMConfig) else FAMILIES[family], generation)
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
