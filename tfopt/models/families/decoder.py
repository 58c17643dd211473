"""What the layouts of decoders share, and the one of LLaMA and its like."""

from collections.abc import Iterator, Mapping
from typing import Any

from tfopt.decoding.config import CausalLMConfig
from tfopt.errors import InputError
from tfopt.models.families.base import Entry, dense_entries, known, norm_entries

ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh",
                       "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}  # fmt: skip
_LLAMA = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
          "head_dim", "intermediate_size", "max_position_embeddings", "rope_theta",
          "tie_word_embeddings")  # fmt: skip


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


def read_rotary(raw: Mapping[str, Any], window: int | None = None, attention_bias: bool = False) -> CausalLMConfig:
    """Our configuration from a `config.json` of LLaMA's layout.

    Raises:
        InputError: something in it is not supported.
    """
    rope = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise InputError(f"scaled rotary positions are not supported, got {rope}")
    if raw.get("attention_bias") or raw.get("mlp_bias"):
        raise InputError("attention_bias and mlp_bias are not supported")
    theta = raw.get("rope_theta") or rope.get("rope_theta")
    found = {name: raw[name] for name in _LLAMA if raw.get(name) is not None}
    return CausalLMConfig(**{
        "tie_word_embeddings": False, **found, **({"rope_theta": theta} if theta else {}),
        "norm_eps": raw.get("rms_norm_eps", 1e-6), "attention_bias": attention_bias,
        "hidden_act": known(ACTIVATIONS, raw.get("hidden_act", "silu")),
        "sliding_window": window, "end_tokens": end_tokens(raw),
    })  # fmt: skip


def write_rotary(config: CausalLMConfig) -> dict[str, Any]:
    """`config.json` of LLaMA's layout, with the name of the family that has these biases and windows.

    Raises:
        InputError: the model has another layout.
    """
    if config.positions != "rotary" or config.norm != "rms" or not config.gated or config.output_bias:
        raise InputError("no public checkpoint layout holds this mix of positions, norms and biases")
    kind = "qwen2" if config.attention_bias else "mistral" if config.sliding_window else "llama"
    return {
        **{name: getattr(config, name) for name in _LLAMA}, **written(config), "rms_norm_eps": config.norm_eps,
        "hidden_act": activation_of(config), "model_type": kind,
        "sliding_window": config.sliding_window, "use_sliding_window": config.sliding_window is not None,
        "max_window_layers": 0,
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
        yield from dense_entries(f"{theirs}.self_attn.o_proj", f"{ours}_attention_output", False)
        yield from norm_entries(f"{theirs}.post_attention_layernorm", f"{ours}_mlp_norm", False)
        for part in ("gate", "up", "down"):
            yield from dense_entries(f"{theirs}.mlp.{part}_proj", f"{ours}_{part}", False)
    yield from norm_entries("model.norm", "final_norm", False)
    if not config.tie_word_embeddings:
        yield Entry("lm_head.weight", ("logits/kernel",), True)


UNUSED = ("model.rotary", "lm_head.")
