"""What the layouts of decoders share, and the one of LLaMA and its like."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tfopt.decoding.config import CausalLMConfig
from tfopt.errors import InputError
from tfopt.models.families.base import Entry, dense_entries, known, norm_entries

ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh",
              "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}  # fmt: skip
_LLAMA = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
          "head_dim", "intermediate_size", "max_position_embeddings", "rope_theta",
          "tie_word_embeddings")  # fmt: skip
UNUSED = ("model.rotary", "lm_head.")
# Parts of names in a folder -> those of a GGUF file.
GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "model.layers.": "blk.", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def end_tokens(raw: Mapping[str, Any]) -> tuple[int, ...]:
    """Ids that end a text."""
    found = raw.get("eos_token_id")
    return () if found is None else tuple(found) if isinstance(found, list) else (int(found),)


def written(config: CausalLMConfig) -> dict[str, Any]:
    """What every `config.json` of a decoder says."""
    end = list(config.end_tokens)
    return {
        "eos_token_id": end[0] if len(end) == 1 else end or None,
        "tie_word_embeddings": config.tie_word_embeddings,
    }


def activation_of(config: CausalLMConfig) -> str:
    """The public name of its activation."""
    names = {ours: theirs for theirs, ours in ACTIVATIONS.items()} | {"gelu_tanh": "gelu_new", "silu": "silu"}
    return names[config.hidden_act]


def read_rotary(raw: Mapping[str, Any], **differs: Any) -> CausalLMConfig:
    """Our configuration from a `config.json` of LLaMA's layout.

    Args:
        raw: its content.
        differs: fields of ours that the family has in its own way.

    Raises:
        InputError: something in it is not supported.
    """
    if raw.get("attention_bias") or raw.get("mlp_bias"):
        raise InputError("attention_bias and mlp_bias are not supported")
    if raw.get("partial_rotary_factor", 1.0) != 1.0:
        raise InputError(
            f"heads that are turned in part only are not supported, got {raw['partial_rotary_factor']}"
        )
    rope = rope_of(raw)
    theta = raw.get("rope_theta") or rope.get("rope_theta") or 10000.0
    found = {name: raw[name] for name in _LLAMA if raw.get(name) is not None}
    size = found.get("head_dim") or found["hidden_size"] // found["num_attention_heads"]
    return CausalLMConfig(**{
        "tie_word_embeddings": False, **found, "rope_theta": theta,
        "rope_factors": rope_factors(rope, size=size, theta=theta),
        "norm_eps": raw.get("rms_norm_eps", 1e-6),
        "hidden_act": known(ACTIVATIONS, raw.get("hidden_act") or raw.get("hidden_activation") or "silu"),
        "end_tokens": end_tokens(raw), **differs,
    })  # fmt: skip


def rope_of(raw: Mapping[str, Any], kind: str = "full_attention") -> dict[str, Any]:
    """What a `config.json` says of rotary positions, of one kind of layers where it tells them apart."""
    parameters = raw.get("rope_parameters") or {}
    return {**(raw.get("rope_scaling") or {}), **(parameters.get(kind) or parameters)}


def rope_factors(rope: Mapping[str, Any], size: int, theta: float) -> tuple[float, ...]:
    """What the frequencies are divided by.

    Raises:
        InputError: a kind of scaling that changes with the length of the text.
    """
    kind, half = rope.get("rope_type", rope.get("type", "default")), size // 2
    if kind in (None, "default"):
        return ()
    try:
        if kind == "linear":
            return (float(rope["factor"]),) * half
        if kind == "longrope" and rope["short_factor"] == rope["long_factor"] and rope["attention_factor"] == 1.0:
            return tuple(map(float, rope["short_factor"]))
        if kind == "llama3":
            return tuple(_llama3_factor(rope, theta ** (i / half) * 2 * math.pi) for i in range(half))
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"rotary positions of type {kind!r} are described wrongly: {dict(rope)}") from error
    raise InputError(f"rotary positions of type {kind!r} are not supported; linear and llama3 are")


def _llama3_factor(rope: Mapping[str, Any], wavelength: float) -> float:
    """Short waves stay, long ones are stretched, those between are mixed."""
    factor, low, high = (float(rope[name]) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    turns = rope["original_max_position_embeddings"] / wavelength
    if turns > high:
        return 1.0
    if turns < low:
        return factor
    smooth = (turns - low) / (high - low)
    return 1.0 / ((1.0 - smooth) / factor + smooth)


def write_rotary(config: CausalLMConfig) -> dict[str, Any]:
    """`config.json` of LLaMA's layout; `families.write_causal` sees whether that holds the model."""
    scaling = None
    if config.rope_factors:  # the one way to write them that public readers have
        factors, context = list(config.rope_factors), config.max_position_embeddings
        scaling = {
            "rope_type": "longrope", "short_factor": factors, "long_factor": factors, "attention_factor": 1.0,
            "original_max_position_embeddings": context,
        }  # fmt: skip
    return {
        **{name: getattr(config, name) for name in _LLAMA}, **written(config), "rms_norm_eps": config.norm_eps,
        "hidden_act": activation_of(config), "rope_scaling": scaling, "model_type": "llama",
    }  # fmt: skip


def rotary_entries(config: CausalLMConfig) -> Iterator[Entry]:
    """The tensors of LLaMA's layout."""
    yield Entry("model.embed_tokens.weight", ("token_embeddings/embeddings",))
    for i in range(config.num_hidden_layers):
        theirs, ours = f"model.layers.{i}", f"layer_{i}"
        yield from norm_entries(f"{theirs}.input_layernorm", f"{ours}_attention_norm", False)
        for part, name in (("q", "query"), ("k", "key"), ("v", "value")):
            stored = f"{theirs}.self_attn.{part}_proj"
            yield from dense_entries(stored, f"{ours}_attention_{name}", config.attention_bias)
            if config.query_key_norm and name != "value":
                yield from norm_entries(
                    f"{theirs}.self_attn.{part}_norm", f"{ours}_attention_{name}_norm", bias=False
                )
        yield from dense_entries(f"{theirs}.self_attn.o_proj", f"{ours}_attention_output", False)
        yield from norm_entries(f"{theirs}.post_attention_layernorm", f"{ours}_mlp_norm", False)
        for part in ("gate", "up", "down"):
            yield from dense_entries(f"{theirs}.mlp.{part}_proj", f"{ours}_{part}", False)
    yield from end_entries(config)


def halves(name: str, value: np.ndarray, config: CausalLMConfig) -> np.ndarray:
    """Rotary pairs as the two halves of a head; some GGUF files have them side by side."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return value
    pairs = value.reshape(-1, config.head_size // 2, 2, *value.shape[1:])
    return pairs.swapaxes(1, 2).reshape(value.shape)


def end_entries(config: CausalLMConfig) -> Iterator[Entry]:
    """The tensors behind the layers."""
    yield from norm_entries("model.norm", "final_norm", False)
    if not config.tie_word_embeddings:
        yield Entry("lm_head.weight", ("logits/kernel",), True)
