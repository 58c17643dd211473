"""The families of KerasHub's decoders that are known: how their settings and weights are read."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tfopt.decoding.config import CausalLMConfig
from tfopt.errors import InputError

_Settings = dict[str, Any]
_Read = Callable[[_Settings, set[str], int], CausalLMConfig]
_Entries = Callable[[CausalLMConfig], Iterator[tuple[str, str]]]
_SCALINGS = ("rope_position_scaling_factor", "rope_scaling_factor", "rope_frequency_adjustment_factor")
# Of Gemma 3's layers, every sixth sees everything.
_FULL_EVERY, _LOCAL_THETA, _FULL_THETA = 6, 1e4, 1e6


def value_of(family: str, name: str, value: np.ndarray) -> np.ndarray:
    """A stored weight in our layout, but for its shape."""
    if not family.startswith("Gemma"):
        return value
    if name.endswith("/scale"):  # stored less one
        return value + np.float32(1.0)
    is_by_head = name.endswith(("query/kernel", "key/kernel", "value/kernel"))
    return value.transpose(1, 0, 2) if is_by_head else value


def _read_rotary(settings: _Settings, paths: set[str], context: int, **differs: Any) -> CausalLMConfig:
    """LLaMA, Mistral and Qwen2."""
    for name in _SCALINGS:
        if settings.get(name) not in (None, 1, 1.0):
            raise InputError(f"{name} {settings[name]} is not known to the decoder, whose positions are unscaled")
    window = settings.get("sliding_window")
    if settings.get("use_sliding_window_attention"):
        window = settings["sliding_window_size"]
    return CausalLMConfig(**{
        "vocab_size": settings["vocabulary_size"], "hidden_size": settings["hidden_dim"],
        "num_hidden_layers": settings["num_layers"], "num_attention_heads": settings["num_query_heads"],
        "num_key_value_heads": settings["num_key_value_heads"], "head_dim": settings.get("head_dim"),
        "intermediate_size": settings["intermediate_dim"], "max_position_embeddings": context,
        "norm_eps": settings["layer_norm_epsilon"],
        "rope_theta": float(settings.get("rope_max_wavelength") or 10000.0),
        "attention_bias": any(path.endswith("query/bias") for path in paths), "sliding_window": window,
        "tie_word_embeddings": not any(path.endswith("reverse_embeddings") for path in paths),
        "dropout": settings.get("dropout") or 0.0, **differs,
    })  # fmt: skip


def _read_qwen3(settings: _Settings, paths: set[str], context: int) -> CausalLMConfig:
    window = settings.get("sliding_window_size")
    return _read_rotary(settings, paths, context, query_key_norm=True, sliding_window=window)


def _read_phi3(settings: _Settings, paths: set[str], context: int) -> CausalLMConfig:
    if settings.get("rope_scaling_type") is not None:
        raise InputError(f"rope_scaling_type {settings['rope_scaling_type']!r} is not known to the decoder")
    return _read_rotary(settings, paths, context)


def _read_gemma(settings: _Settings, paths: set[str], context: int, **differs: Any) -> CausalLMConfig:
    if settings["use_post_ffw_norm"] != settings["use_post_attention_norm"]:
        raise InputError("norms behind the attention or the feed-forward layers alone are not known to the decoder")
    has_windows = settings["use_sliding_window_attention"]
    # The half of Gemma's and all of Gemma 3's are the units of a gate.
    return _read_rotary(settings, paths, context, **{
        "intermediate_size": settings["intermediate_dim"] // 2, "hidden_act": "gelu_tanh",
        "embedding_scale": settings["hidden_dim"] ** 0.5, "post_norms": settings["use_post_ffw_norm"],
        "attention_softcap": settings["attention_logit_soft_cap"],
        "logit_softcap": settings["final_logit_soft_cap"],
        "full_layers": tuple(range(1, settings["num_layers"], 2)) if has_windows else (), **differs,
    })  # fmt: skip


def _read_gemma3(settings: _Settings, paths: set[str], context: int) -> CausalLMConfig:
    if settings.get("vision_encoder") is not None or settings.get("use_bidirectional_attention"):
        raise InputError("pictures, and layers that see what comes after, are not known to the decoder")
    factors = (settings["local_rope_scaling_factor"], settings["global_rope_scaling_factor"])
    if factors[0] != 1.0:
        raise InputError(f"local_rope_scaling_factor {factors[0]} is not known to the decoder")
    layers, half = settings["num_layers"], settings["head_dim"] // 2
    has_windows = settings["use_sliding_window_attention"]
    return _read_gemma(
        settings, paths, context, intermediate_size=settings["intermediate_dim"],
        query_key_norm=settings["use_query_key_norm"], rope_theta=_FULL_THETA, local_rope_theta=_LOCAL_THETA,
        rope_factors=() if factors[1] == 1.0 else (float(factors[1]),) * half,
        full_layers=tuple(range(_FULL_EVERY - 1, layers, _FULL_EVERY)) if has_windows else (),
    )  # fmt: skip


def _read_gpt2(settings: _Settings, paths: set[str], context: int) -> CausalLMConfig:
    return CausalLMConfig(
        settings["vocabulary_size"], settings["hidden_dim"], settings["num_layers"],
        num_attention_heads=settings["num_heads"], intermediate_size=settings["intermediate_dim"],
        max_position_embeddings=settings["max_sequence_length"],
        positions="learned", norm="layer", norm_eps=1e-5, hidden_act="gelu_tanh", gated=False, attention_bias=True,
        output_bias=True, dropout=settings["dropout"],
    )  # fmt: skip


def _attention(config: CausalLMConfig, ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    for part in ("query", "key", "value"):
        yield f"{ours}_attention_{part}/kernel", f"{theirs}/{part}/kernel"
        if config.attention_bias:
            yield f"{ours}_attention_{part}/bias", f"{theirs}/{part}/bias"
    yield f"{ours}_attention_output/kernel", f"{theirs}/attention_output/kernel"


def _rotary_entries(
    config: CausalLMConfig,
    attention: str = "self_attention",
    norms: tuple[str, str] = ("self_attention_layernorm", "feedforward_layernorm"),
) -> Iterator[tuple[str, str]]:
    """Our path and theirs."""
    yield "token_embeddings/embeddings", "token_embedding/embeddings"
    for i in range(config.num_hidden_layers):
        ours, theirs = f"layer_{i}", f"transformer_layer_{i}"
        yield f"{ours}_attention_norm/gamma", f"{theirs}/{norms[0]}/scale"
        yield from _attention(config, ours, f"{theirs}/{attention}")
        for part in ("query", "key") if config.query_key_norm else ():
            yield f"{ours}_attention_{part}_norm/gamma", f"{theirs}/{attention}/{part}_dense_layernorm/scale"
        yield f"{ours}_mlp_norm/gamma", f"{theirs}/{norms[1]}/scale"
        for name, other in (("gate", "gate"), ("up", "intermediate"), ("down", "output")):
            yield f"{ours}_{name}/kernel", f"{theirs}/feedforward_{other}_dense/kernel"
    yield "final_norm/gamma", "sequence_output_layernorm/scale"
    if not config.tie_word_embeddings:
        yield "logits/kernel", "token_embedding/reverse_embeddings"


def _phi3_entries(config: CausalLMConfig) -> Iterator[tuple[str, str]]:
    return _rotary_entries(config, "attention", ("pre_attention_layernorm", "post_attention_layernorm"))


def _gemma_entries(config: CausalLMConfig) -> Iterator[tuple[str, str]]:
    yield "token_embeddings/embeddings", "token_embedding/embeddings"
    for i in range(config.num_hidden_layers):
        ours, theirs = f"layer_{i}", f"decoder_block_{i}"
        yield from _attention(config, ours, f"{theirs}/attention")
        for part in ("query", "key") if config.query_key_norm else ():
            yield f"{ours}_attention_{part}_norm/gamma", f"{theirs}/attention/{part}_norm/scale"
        norms = {"attention": "pre_attention", "mlp": "pre_ffw"}
        if config.post_norms:
            norms |= {"attention_post": "post_attention", "mlp_post": "post_ffw"}
        yield from ((f"{ours}_{name}_norm/gamma", f"{theirs}/{other}_norm/scale") for name, other in norms.items())
        for name, other in (("gate", "gating"), ("up", "gating_2"), ("down", "linear")):
            yield f"{ours}_{name}/kernel", f"{theirs}/ffw_{other}/kernel"
    yield "final_norm/gamma", "final_normalization/scale"


def _gpt2_entries(config: CausalLMConfig) -> Iterator[tuple[str, str]]:
    yield "token_embeddings/embeddings", "token_embedding/embeddings"
    yield "position_embeddings/embeddings", "position_embedding/embeddings"
    for i in range(config.num_hidden_layers):
        ours, theirs = f"layer_{i}", f"transformer_layer_{i}"
        yield from _attention(config, ours, f"{theirs}/self_attention")
        yield f"{ours}_attention_output/bias", f"{theirs}/self_attention/attention_output/bias"
        for norm, other in (
            ("attention_norm", "self_attention_layer_norm"),
            ("mlp_norm", "feedforward_layer_norm"),
        ):
            yield from ((f"{ours}_{norm}/{kind}", f"{theirs}/{other}/{kind}") for kind in ("gamma", "beta"))
        for name, other in (("up", "intermediate"), ("down", "output")):
            stored = f"{theirs}/feedforward_{other}_dense"
            yield from ((f"{ours}_{name}/{kind}", f"{stored}/{kind}") for kind in ("kernel", "bias"))
    yield from ((f"final_norm/{kind}", f"layer_norm/{kind}") for kind in ("gamma", "beta"))


FAMILIES: dict[str, tuple[_Read, _Entries]] = {
    "GPT2Backbone": (_read_gpt2, _gpt2_entries),
    "LlamaBackbone": (_read_rotary, _rotary_entries),
    "Llama3Backbone": (_read_rotary, _rotary_entries),
    "MistralBackbone": (_read_rotary, _rotary_entries),
    "QwenBackbone": (_read_rotary, _rotary_entries),
    "Qwen3Backbone": (_read_qwen3, _rotary_entries),
    "Phi3Backbone": (_read_phi3, _phi3_entries),
    "GemmaBackbone": (_read_gemma, _gemma_entries),
    "Gemma3Backbone": (_read_gemma3, _gemma_entries),
}
