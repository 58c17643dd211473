"""What public checkpoints call things: `config.json` and tensor names of each architecture, and ours.

One `Entry` says how one stored tensor becomes weights of ours and back.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from tfopt.decoding.config import CausalLMConfig
from tfopt.errors import InputError, ModelFileError
from tfopt.models.bert import BertConfig

Config = BertConfig | CausalLMConfig


@dataclasses.dataclass(frozen=True)
class Entry:
    """One stored tensor.

    Attributes:
        theirs: its name, without the prefix that some checkpoints have.
        ours: paths of our weights; several lie side by side along the last axis of the stored tensor.
        transpose: outputs come first in the stored matrix.
    """

    theirs: str
    ours: tuple[str, ...]
    transpose: bool = False

    def read(self, stored: np.ndarray) -> dict[str, np.ndarray]:
        """Our weights from the stored tensor."""
        value = stored.T if self.transpose else stored
        parts = np.split(value, len(self.ours), -1) if len(self.ours) > 1 else [value]
        return dict(zip(self.ours, parts, strict=True))

    def write(self, weights: Mapping[str, np.ndarray]) -> np.ndarray:
        """The stored tensor from our weights."""
        joined = np.concatenate([weights[path] for path in self.ours], -1)
        return np.ascontiguousarray(joined.T if self.transpose else joined)

    def shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        """Shape of the stored tensor."""
        first = shapes[self.ours[0]]
        joined = (*first[:-1], sum(shapes[path][-1] for path in self.ours))
        return joined[::-1] if self.transpose else joined


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One `model_type` of `config.json`.

    Attributes:
        prefixes: that tensor names may have; the first is the one that we write.
        config: `config.json` -> our configuration.
        write_config: our configuration -> `config.json`.
        entries: tensors of a configuration.
        unused: beginnings of names that checkpoints carry and our models do not need.
    """

    prefixes: tuple[str, ...]
    config: Callable[[Mapping[str, Any]], Config]
    write_config: Callable[[Any], dict[str, Any]]
    entries: Callable[[Any], Iterator[Entry]]
    unused: tuple[str, ...] = ()


def architecture_of(raw: Any, where: str) -> tuple[str, Architecture]:
    """The architecture that a `config.json` names.

    Raises:
        ModelFileError: it names none that is known.
    """
    kind = raw.get("model_type") if isinstance(raw, dict) else None
    if kind not in ARCHITECTURES:
        known = ", ".join(repr(name) for name in ARCHITECTURES)
        raise ModelFileError(f"{where}: architecture {kind!r} is not supported; supported: {known}")
    return kind, ARCHITECTURES[kind]


def dense_entries(theirs: str, ours: str, bias: bool = True) -> Iterator[Entry]:
    """A dense layer whose stored matrix has outputs first."""
    yield Entry(f"{theirs}.weight", (f"{ours}/kernel",), True)
    if bias:
        yield Entry(f"{theirs}.bias", (f"{ours}/bias",))


def norm_entries(theirs: str, ours: str, bias: bool = True) -> Iterator[Entry]:
    """A norm."""
    yield Entry(f"{theirs}.weight", (f"{ours}/gamma",))
    if bias:
        yield Entry(f"{theirs}.bias", (f"{ours}/beta",))


# Encoders

_BERT_ACTIVATIONS = {"gelu": "gelu", "relu": "relu", "silu": "silu", "tanh": "tanh", "swish": "silu"}


def _known(table: Mapping[str, str], name: Any) -> str:
    if name not in table:
        raise InputError(f"activation {name!r} is not supported; supported: {', '.join(table)}")
    return table[name]


def _bert_config(raw: Mapping[str, Any]) -> BertConfig:
    if raw.get("position_embedding_type", "absolute") != "absolute":
        raise InputError(f"only absolute positions, got {raw['position_embedding_type']!r}")
    names = {field.name for field in dataclasses.fields(BertConfig)} - {"position_offset"}
    found = {k: v for k, v in raw.items() if k in names}
    found["hidden_act"] = _known(_BERT_ACTIVATIONS, found.get("hidden_act", "gelu"))
    return BertConfig(**found)


def _roberta_config(raw: Mapping[str, Any]) -> BertConfig:
    return dataclasses.replace(
        _bert_config({"type_vocab_size": 1, **raw}), position_offset=raw.get("pad_token_id", 1) + 1
    )


def _write_bert(config: BertConfig) -> dict[str, Any]:
    raw = dataclasses.asdict(config)
    offset = raw.pop("position_offset")
    return {**raw, "model_type": "roberta", "pad_token_id": offset - 1} if offset else {**raw, "model_type": "bert"}


def _bert_entries(config: BertConfig) -> Iterator[Entry]:
    for table in ("word_embeddings", "token_type_embeddings", "position_embeddings"):
        yield Entry(f"embeddings.{table}.weight", (f"{table}/embeddings",))
    yield from norm_entries("embeddings.LayerNorm", "embeddings_norm")
    for i in range(config.num_hidden_layers):
        theirs, ours = f"encoder.layer.{i}", f"layer_{i}"
        for part in ("query", "key", "value"):
            yield from dense_entries(f"{theirs}.attention.self.{part}", f"{ours}_attention_{part}")
        yield from dense_entries(f"{theirs}.attention.output.dense", f"{ours}_attention_output")
        yield from norm_entries(f"{theirs}.attention.output.LayerNorm", f"{ours}_attention_norm")
        yield from dense_entries(f"{theirs}.intermediate.dense", f"{ours}_intermediate")
        yield from dense_entries(f"{theirs}.output.dense", f"{ours}_output")
        yield from norm_entries(f"{theirs}.output.LayerNorm", f"{ours}_output_norm")


_DISTILBERT = {
    "vocab_size": "vocab_size", "dim": "hidden_size", "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads", "hidden_dim": "intermediate_size",
    "max_position_embeddings": "max_position_embeddings", "dropout": "hidden_dropout_prob",
}  # fmt: skip


def _distilbert_config(raw: Mapping[str, Any]) -> BertConfig:
    found = {ours: raw[theirs] for theirs, ours in _DISTILBERT.items() if theirs in raw}
    return BertConfig(
        **found, type_vocab_size=0, hidden_act=_known(_BERT_ACTIVATIONS, raw.get("activation", "gelu"))
    )


def _write_distilbert(config: BertConfig) -> dict[str, Any]:
    raw = {theirs: getattr(config, ours) for theirs, ours in _DISTILBERT.items()}
    return {**raw, "activation": config.hidden_act, "model_type": "distilbert"}


def _distilbert_entries(config: BertConfig) -> Iterator[Entry]:
    for table in ("word_embeddings", "position_embeddings"):
        yield Entry(f"embeddings.{table}.weight", (f"{table}/embeddings",))
    yield from norm_entries("embeddings.LayerNorm", "embeddings_norm")
    for i in range(config.num_hidden_layers):
        theirs, ours = f"transformer.layer.{i}", f"layer_{i}"
        for part, name in (("q_lin", "query"), ("k_lin", "key"), ("v_lin", "value"), ("out_lin", "output")):
            yield from dense_entries(f"{theirs}.attention.{part}", f"{ours}_attention_{name}")
        yield from norm_entries(f"{theirs}.sa_layer_norm", f"{ours}_attention_norm")
        yield from dense_entries(f"{theirs}.ffn.lin1", f"{ours}_intermediate")
        yield from dense_entries(f"{theirs}.ffn.lin2", f"{ours}_output")
        yield from norm_entries(f"{theirs}.output_layer_norm", f"{ours}_output_norm")


# Decoders

_CAUSAL_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh",
                       "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}  # fmt: skip
_GPT2 = {"vocab_size": "vocab_size", "n_embd": "hidden_size", "n_layer": "num_hidden_layers",
         "n_head": "num_attention_heads", "n_positions": "max_position_embeddings",
         "layer_norm_epsilon": "norm_eps"}  # fmt: skip
_LLAMA = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
          "head_dim", "intermediate_size", "max_position_embeddings", "rope_theta",
          "tie_word_embeddings")  # fmt: skip


def _end_tokens(raw: Mapping[str, Any]) -> tuple[int, ...]:
    found = raw.get("eos_token_id")
    return () if found is None else tuple(found) if isinstance(found, list) else (int(found),)


def _gpt2_config(raw: Mapping[str, Any]) -> CausalLMConfig:
    if raw.get("scale_attn_by_inverse_layer_idx") or raw.get("tie_word_embeddings") is False:
        raise InputError("scores scaled by layer and an output of its own are not supported for gpt2")
    found = {ours: raw[theirs] for theirs, ours in _GPT2.items() if theirs in raw}
    return CausalLMConfig(
        **found, intermediate_size=raw.get("n_inner") or 4 * found["hidden_size"], positions="learned",
        norm="layer", gated=False, attention_bias=True, output_bias=True, end_tokens=_end_tokens(raw),
        hidden_act=_known(_CAUSAL_ACTIVATIONS, raw.get("activation_function", "gelu_new")),
    )  # fmt: skip


def _llama_config(raw: Mapping[str, Any]) -> CausalLMConfig:
    rope = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise InputError(f"scaled rotary positions are not supported, got {rope}")
    if raw.get("attention_bias") or raw.get("mlp_bias"):
        raise InputError("attention_bias and mlp_bias are not supported")
    theta, kind = raw.get("rope_theta") or rope.get("rope_theta"), raw["model_type"]
    found = {name: raw[name] for name in _LLAMA if raw.get(name) is not None}
    return CausalLMConfig(**{
        "tie_word_embeddings": False, **found, **({"rope_theta": theta} if theta else {}),
        "norm_eps": raw.get("rms_norm_eps", 1e-6), "attention_bias": kind == "qwen2",
        "hidden_act": _known(_CAUSAL_ACTIVATIONS, raw.get("hidden_act", "silu")),
        "sliding_window": _window(raw), "end_tokens": _end_tokens(raw),
    })  # fmt: skip


def _window(raw: Mapping[str, Any]) -> int | None:
    """The window that every layer has."""
    if raw["model_type"] == "mistral":
        return raw.get("sliding_window", 4096)
    if raw["model_type"] != "qwen2" or not raw.get("use_sliding_window"):
        return None
    first = raw.get("max_window_layers", 28)  # the layers before see everything
    if first >= raw["num_hidden_layers"]:
        return None
    if first:
        raise InputError(f"a window in some layers only is not supported, got max_window_layers={first}")
    return raw.get("sliding_window", 4096)


def write_causal(config: CausalLMConfig) -> dict[str, Any]:
    """`config.json` of a decoder, in the layout that holds it.

    Raises:
        InputError: none does.
    """
    names = {ours: theirs for theirs, ours in _CAUSAL_ACTIVATIONS.items()} | {
        "gelu_tanh": "gelu_new",
        "silu": "silu",
    }
    end = list(config.end_tokens)
    common = {
        "eos_token_id": end[0] if len(end) == 1 else end or None,
        "tie_word_embeddings": config.tie_word_embeddings,
    }
    if config.positions == "learned" and config.norm == "layer" and not config.gated:
        whole = (
            config.key_value_heads == config.num_attention_heads and config.attention_bias and config.output_bias
        )
        square = config.num_attention_heads * config.head_size == config.hidden_size
        if not whole or not square or not config.tie_word_embeddings or config.sliding_window:
            raise InputError(
                "a GPT-2 checkpoint has all biases, one key head per head, heads that make up the width, and a "
                f"tied output; this model has {config.num_attention_heads} heads of {config.head_size} in a width "
                f"of {config.hidden_size}"
            )
        raw = {theirs: getattr(config, ours) for theirs, ours in _GPT2.items()}
        dropouts = {f"{place}_pdrop": config.dropout for place in ("resid", "embd", "attn")}
        return {**raw, **common, **dropouts, "n_inner": config.intermediate_size, "model_type": "gpt2",
                "activation_function": names[config.hidden_act]}  # fmt: skip
    if config.positions != "rotary" or config.norm != "rms" or not config.gated or config.output_bias:
        raise InputError("no public checkpoint layout holds this mix of positions, norms and biases")
    kind = "qwen2" if config.attention_bias else "mistral" if config.sliding_window else "llama"
    return {
        **{name: getattr(config, name) for name in _LLAMA}, **common, "rms_norm_eps": config.norm_eps,
        "hidden_act": names[config.hidden_act], "model_type": kind,
        "sliding_window": config.sliding_window, "use_sliding_window": config.sliding_window is not None,
        "max_window_layers": 0,
    }  # fmt: skip


def _gpt2_entries(config: CausalLMConfig) -> Iterator[Entry]:
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


def _llama_entries(config: CausalLMConfig) -> Iterator[Entry]:
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


_HEADS = ("pooler.", "cls.", "classifier.", "embeddings.position_ids", "lm_head.", "vocab_", "pre_classifier.",
          "qa_outputs.")  # fmt: skip
_CAUSAL = Architecture(
    ("",), _llama_config, write_causal, entries=_llama_entries, unused=("model.rotary", "lm_head.")
)
ARCHITECTURES: dict[str, Architecture] = {
    "bert": Architecture(("", "bert."), _bert_config, _write_bert, entries=_bert_entries, unused=_HEADS),
    "roberta": Architecture(("roberta.", ""), _roberta_config, _write_bert, entries=_bert_entries, unused=_HEADS),
    "distilbert": Architecture(
        ("distilbert.", ""), _distilbert_config, _write_distilbert, entries=_distilbert_entries, unused=_HEADS
    ),
    "gpt2": Architecture(("", "transformer."), _gpt2_config, write_causal, entries=_gpt2_entries,
                         unused=("lm_head.",)),
    "llama": _CAUSAL, "mistral": _CAUSAL, "qwen2": _CAUSAL,
}  # fmt: skip
