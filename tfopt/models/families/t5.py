"""T5 and its version 1.1, as Flan-T5 has it: Raffel et al., https://arxiv.org/abs/1910.10683."""

from collections.abc import Iterator, Mapping
from typing import Any

from tfopt.decoding.seq2seq_config import Seq2SeqConfig
from tfopt.errors import InputError
from tfopt.models.families.base import Entry, Family, dense_entries, norm_entries
from tfopt.models.families.decoder import end_tokens

_SIZES = {
    "vocab_size": ("vocab_size", 32128), "d_model": ("hidden_size", 512), "d_kv": ("head_dim", 64),
    "d_ff": ("intermediate_size", 2048), "num_layers": ("encoder_layers", 6),
    "num_heads": ("num_attention_heads", 8), "relative_attention_num_buckets": ("relative_buckets", 32),
    "relative_attention_max_distance": ("relative_distance", 128), "n_positions": ("max_position_embeddings", 512),
    "dropout_rate": ("dropout", 0.1), "layer_norm_epsilon": ("norm_eps", 1e-6),
}  # fmt: skip
# What "feed_forward_proj" means -> activation, gated.
_PROJECTIONS = {
    "relu": ("relu", False), "gated-gelu": ("gelu_tanh", True), "gated-silu": ("silu", True),
    "gelu": ("gelu", False), "gelu_new": ("gelu_tanh", False), "silu": ("silu", False),
    "gated-relu": ("relu", True), "gated-gelu_new": ("gelu_tanh", True),
}  # fmt: skip
_PARTS = (("q", "query"), ("k", "key"), ("v", "value"), ("o", "output"))


def _read_config(raw: Mapping[str, Any]) -> Seq2SeqConfig:
    projection = raw.get("feed_forward_proj", "relu")
    if projection not in _PROJECTIONS:
        raise InputError(f"feed_forward_proj must be one of {', '.join(_PROJECTIONS)}, got {projection!r}")
    act, gated = _PROJECTIONS[projection]
    tied = raw.get("tie_word_embeddings", True) is not False
    scaled = raw.get("scale_decoder_outputs", tied)  # newer files say so; of older ones, those that are tied do
    found = {ours: raw.get(theirs, default) for theirs, (ours, default) in _SIZES.items()}
    return Seq2SeqConfig(
        **found, decoder_layers=raw.get("num_decoder_layers") or found["encoder_layers"], hidden_act=act,
        gated=gated, tie_word_embeddings=tied, logit_scale=found["hidden_size"] ** -0.5 if scaled else 1.0,
        start_token=raw.get("decoder_start_token_id", raw.get("pad_token_id", 0)),
        end_tokens=end_tokens({"eos_token_id": raw.get("eos_token_id", 1)}),
    )  # fmt: skip


def _write_config(config: Seq2SeqConfig) -> dict[str, Any]:
    kind = next(n for n, found in _PROJECTIONS.items() if found == (config.hidden_act, config.gated))
    end = list(config.end_tokens)
    return {
        **{theirs: getattr(config, ours) for theirs, (ours, _) in _SIZES.items()}, "model_type": "t5",
        "num_decoder_layers": config.decoder_layers, "feed_forward_proj": kind, "is_encoder_decoder": True,
        "tie_word_embeddings": config.tie_word_embeddings,
        "scale_decoder_outputs": config.logit_scale != 1.0, "decoder_start_token_id": config.start_token,
        "pad_token_id": config.start_token, "eos_token_id": end[0] if len(end) == 1 else end,
        "architectures": ["T5ForConditionalGeneration"],
    }  # fmt: skip


def _entries(config: Seq2SeqConfig) -> Iterator[Entry]:
    yield Entry("shared.weight", ("token_embeddings/embeddings",))
    for side, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        table = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        yield Entry(table, (f"{side}_distances/embeddings",))
        attentions = [
            ("SelfAttention", "attention"),
            *([("EncDecAttention", "cross")] if side == "decoder" else []),
        ]
        for i in range(layers):
            for number, (theirs, ours) in enumerate(attentions):
                where, name = f"{side}.block.{i}.layer.{number}", f"{side}_{i}_{ours}"
                for part, long in _PARTS:
                    yield from dense_entries(f"{where}.{theirs}.{part}", f"{name}_{long}", False)
                yield from norm_entries(f"{where}.layer_norm", f"{name}_norm", False)
            where, name = f"{side}.block.{i}.layer.{len(attentions)}", f"{side}_{i}"
            inner = (("wi_0", "gate"), ("wi_1", "up")) if config.gated else (("wi", "up"),)
            for part, long in (*inner, ("wo", "down")):
                yield from dense_entries(f"{where}.DenseReluDense.{part}", f"{name}_{long}", False)
            yield from norm_entries(f"{where}.layer_norm", f"{name}_mlp_norm", False)
        yield from norm_entries(f"{side}.final_layer_norm", f"{side}_norm", False)
    if not config.tie_word_embeddings:
        yield Entry("lm_head.weight", ("logits/kernel",), True)


FAMILY = Family(
    ("",), _read_config, _write_config, entries=_entries,
    unused=("encoder.embed_tokens.", "decoder.embed_tokens.", "lm_head.",
            "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias."),
)  # fmt: skip
