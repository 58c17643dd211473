"""The table of families of public checkpoints, by the `model_type` of their `config.json`; one file each."""

import contextlib
import dataclasses
import difflib
from typing import Any

from tfopt.decoding.config import CausalLMConfig
from tfopt.decoding.seq2seq_config import Seq2SeqConfig
from tfopt.errors import InputError, ModelFileError
from tfopt.models.bert import BertConfig
from tfopt.models.encoder import EncoderConfig
from tfopt.models.families import (
    bert,
    distilbert,
    gemma,
    gpt2,
    llama,
    marian,
    mistral,
    modernbert,
    phi3,
    qwen,
    roberta,
    smollm3,
    t5,
)
from tfopt.models.families.base import Config, Entry, Family
from tfopt.models.families.fields import check_fields

__all__ = ["FAMILIES", "Config", "Entry", "Family", "family_of", "kind_of_encoder", "write_causal", "write_seq2seq"]

# Not a `model_type`: Gemma 3 whose tokens see both sides says so in another field.
BOTH_WAYS = "gemma3_text (encoder)"
FAMILIES: dict[str, Family] = {
    "bert": bert.FAMILY,
    "roberta": roberta.FAMILY,
    "distilbert": distilbert.FAMILY,
    "modernbert": modernbert.FAMILY,
    "gpt2": gpt2.FAMILY,
    "llama": llama.FAMILY,
    "mistral": mistral.FAMILY,
    "qwen2": qwen.QWEN2,
    "qwen3": qwen.QWEN3,
    "smollm3": smollm3.FAMILY,
    "phi3": phi3.FAMILY,
    "gemma": gemma.GEMMA,
    "gemma2": gemma.GEMMA2,
    "gemma3_text": gemma.GEMMA3,
    BOTH_WAYS: gemma.EMBEDDING_GEMMA,
    "t5": t5.FAMILY,
    "marian": marian.FAMILY,
}
# What a decoder may be written as, the plainest layout first.
_DECODERS = ("gpt2", "llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma", "gemma2", "gemma3_text")


def family_of(raw: Any, where: str) -> tuple[str, Family]:
    """The family that a `config.json` names.

    Raises:
        ModelFileError: it names none that is known.
    """
    kind = raw.get("model_type") if isinstance(raw, dict) else None
    if not isinstance(kind, str) or kind not in FAMILIES or kind == BOTH_WAYS:
        names = [name for name in FAMILIES if name != BOTH_WAYS]
        near = difflib.get_close_matches(str(kind), names, n=3, cutoff=0.5)
        known = ", ".join(map(repr, names))
        advice = f"nearest: {', '.join(map(repr, near))}; " if near else ""
        raise ModelFileError(f"{where}: architecture {kind!r} is not supported; {advice}supported: {known}")
    if raw.get("use_bidirectional_attention") and kind == "gemma3_text":
        kind = BOTH_WAYS
    return kind, FAMILIES[kind]


def kind_of_encoder(config: EncoderConfig) -> str:
    """The row of the table that holds an encoder.

    Raises:
        InputError: none does.
    """
    if isinstance(config, BertConfig):
        return "distilbert" if not config.type_vocab_size else "roberta" if config.position_offset else "bert"
    plain = dataclasses.replace(config.with_dropout(0.0), embedding_widths=())
    for kind in ("modernbert", BOTH_WAYS):
        with contextlib.suppress(InputError, AssertionError):
            if FAMILIES[kind].config(check_fields(FAMILIES[kind].write_config(plain), kind)) == plain:
                return kind
    raise InputError("no public checkpoint layout holds this mix of norms, windows and heads")


def write_seq2seq(config: Seq2SeqConfig) -> dict[str, Any]:
    """`config.json` of an encoder-decoder, in the layout that holds it.

    Raises:
        InputError: none does.
    """
    for kind in ("t5", "marian"):
        with contextlib.suppress(InputError, StopIteration):
            raw = FAMILIES[kind].write_config(config)
            if FAMILIES[kind].config(check_fields(raw, kind)) == config:
                return raw
    raise InputError("no public checkpoint layout holds this mix of positions, norms, scales and tokens")


def write_causal(config: CausalLMConfig) -> dict[str, Any]:
    """`config.json` of a decoder, in the layout that holds it.

    Raises:
        InputError: none does.
    """
    if config.inner_rotation or config.turned_stream:
        raise InputError("no public checkpoint layout holds turned channels; save the model that was rotated")
    if config.positions == "learned" and config.norm == "layer" and not config.gated:
        gpt2.write_config(config)  # which says why it does not hold it
    stored = dataclasses.replace(config, dropout=0.0)  # which not every layout holds
    for name in _DECODERS:
        with contextlib.suppress(InputError):
            raw = FAMILIES[name].write_config(config)
            read = FAMILIES[name].config(check_fields(raw, name))
            if isinstance(read, CausalLMConfig) and dataclasses.replace(read, dropout=0.0) == stored:
                return raw
    raise InputError("no public checkpoint layout holds this mix of positions, norms, windows and biases")
