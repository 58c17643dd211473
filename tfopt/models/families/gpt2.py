"""GPT-2: Radford et al., "Language Models are Unsupervised Multitask Learners"."""

from collections.abc import Iterator, Mapping
from typing import Any

from tfopt.decoding.config import CausalLMConfig
from tfopt.errors import InputError
from tfopt.models.families.base import Entry, Family, known, norm_entries
from tfopt.models.families.decoder import ACTIVATIONS, activation_of, end_tokens, written

_NAMES = {"vocab_size": "vocab_size", "n_embd": "hidden_size", "n_layer": "num_hidden_layers",
         "n_head": "num_attention_heads", "n_positions": "max_position_embeddings",
         "layer_norm_epsilon": "norm_eps"}  # fmt: skip


def _read_config(raw: Mapping[str, Any]) -> CausalLMConfig:
    if raw.get("scale_attn_by_inverse_layer_idx") or raw.get("tie_word_embeddings") is False:
        raise InputError("scores scaled by layer and an output of its own are not supported for gpt2")
    found = {ours: raw[theirs] for theirs, ours in _NAMES.items() if theirs in raw}
    return CausalLMConfig(
        **found, intermediate_size=raw.get("n_inner") or 4 * found["hidden_size"], positions="learned",
        norm="layer", gated=False, attention_bias=True, output_bias=True, end_tokens=end_tokens(raw),
        hidden_act=known(ACTIVATIONS, raw.get("activation_function", "gelu_new")),
    )  # fmt: skip


def write_config(config: CausalLMConfig) -> dict[str, Any]:
    """`config.json` of a decoder of this kind.

    Raises:
        InputError: GPT-2's layout does not hold it.
    """
    whole = config.key_value_heads == config.num_attention_heads and config.attention_bias and config.output_bias
    square = config.num_attention_heads * config.head_size == config.hidden_size
    if not whole or not square or not config.tie_word_embeddings or config.sliding_window:
        raise InputError(
            "a GPT-2 checkpoint has all biases, one key head per head, heads that make up the width, and a "
            f"tied output; this model has {config.num_attention_heads} heads of {config.head_size} in a width "
            f"of {config.hidden_size}"
        )
    raw = {theirs: getattr(config, ours) for theirs, ours in _NAMES.items()}
    dropouts = {f"{place}_pdrop": config.dropout for place in ("resid", "embd", "attn")}
    return {**raw, **written(config), **dropouts, "n_inner": config.intermediate_size, "model_type": "gpt2",
            "activation_function": activation_of(config)}  # fmt: skip


def _entries(config: CausalLMConfig) -> Iterator[Entry]:
    yield Entry("wte.weight", ("token_embeddings/embeddings",))
    yield Entry("wpe.weight", ("position_embeddings/embeddings",))
    for i in range(config.num_hidden_layers):
        theirs, ours = f"h.{i}", f"layer_{i}"
        yield from norm_entries(f"{theirs}.ln_1", f"{ours}_attention_norm")
        parts = [f"{ours}_attention_{part}" for part in ("query", "key", "value")]
        for name, kind in (("weight", "kernel"), ("bias", "bias")):
            yield Entry(f"{theirs}.attn.c_attn.{name}", tuple(f"{part}/{kind}" for part in parts))
            yield Entry(f"{theirs}.attn.c_proj.{name}", (f"{ours}_attention_output/{kind}",))
            yield Entry(f"{theirs}.mlp.c_fc.{name}", (f"{ours}_up/{kind}",))
            yield Entry(f"{theirs}.mlp.c_proj.{name}", (f"{ours}_down/{kind}",))
        yield from norm_entries(f"{theirs}.ln_2", f"{ours}_mlp_norm")
    yield from norm_entries("ln_f", "final_norm")


FAMILY = Family(("", "transformer."), _read_config, write_config, entries=_entries, unused=("lm_head.",))
