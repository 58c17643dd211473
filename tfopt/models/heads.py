"""What public checkpoints call the heads of their encoders, and what ours are called.

A head that a checkpoint does not have starts fresh; layers are read whole or not at all.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tfopt.errors import InputError, ModelFileError
from tfopt.models.families.base import Entry, dense_entries, norm_entries

# model_type -> layers of ours by the names that they have there
_POOLED = {
    "bert": {"pooler": "pooler.dense", "logits": "classifier"},
    "roberta": {"pooler": "classifier.dense", "logits": "classifier.out_proj"},
    "distilbert": {"pooler": "pre_classifier", "logits": "classifier"},
    "modernbert": {"logits": "classifier"},
}
OF_THE_ENCODER = "pooler."  # a layer that BERT counts to the encoder
_MASKED = {  # dense, norm, bias
    "bert": ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias"),
    "roberta": ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias"),
    "distilbert": ("vocab_transform", "vocab_layer_norm", "vocab_projector.bias"),
}
_CLASSES = {
    "classification": "ForSequenceClassification",
    "tokens": "ForTokenClassification",
    "span": "ForQuestionAnswering",
    "masked_lm": "ForMaskedLM",
}
_PREFIX = {"bert": "Bert", "roberta": "Roberta", "distilbert": "DistilBert", "modernbert": "ModernBert"}
# Where a classifier of ModernBERT looks -> our pooling.
_LOOKS_AT = {"cls": "pooler", "mean": "mean_pooler"}
POOLERS = ("pooler", "mean_pooler")


def head_entries(kind: str, head: str | None, pooling: str, norm_bias: bool = True) -> list[Entry]:
    """The stored tensors of a head.

    Args:
        kind: "bert", "roberta", "distilbert" or "modernbert"; others have none that are known.
        head: as for `models.encoder`.
        pooling: of a classifier; public ones have "pooler", or "mean_pooler".
        norm_bias: whether ModernBERT's norms have biases.
    """
    if kind not in _PREFIX or (head == "classification" and pooling not in POOLERS):
        return []
    if kind == "modernbert" and head in _CLASSES:
        before = [*dense_entries("head.dense", "head_dense", False)]
        before += norm_entries("head.norm", "head_norm", norm_bias)
        if head == "masked_lm":
            return [*before, Entry("decoder.bias", ("masked_lm_bias/beta",))]
        return [*before, *dense_entries("classifier", "span_logits" if head == "span" else "logits")]
    if head == "classification":
        return [e for ours, theirs in _POOLED[kind].items() for e in dense_entries(theirs, ours)]
    if head == "tokens":
        return list(dense_entries("classifier", "logits"))
    if head == "span":
        return list(dense_entries("qa_outputs", "span_logits"))
    if head == "masked_lm":
        dense, norm, bias = _MASKED[kind]
        last = Entry(bias, ("masked_lm_bias/beta",))
        return [*dense_entries(dense, "masked_lm_dense"), *norm_entries(norm, "masked_lm_norm"), last]
    return []


def stored_entries(entries: list[Entry], stored: Mapping[str, Any], where: str) -> list[Entry]:
    """Those of a head's tensors that a checkpoint has.

    Raises:
        ModelFileError: a layer of which it has only a part.
    """
    found = [e for e in entries if e.theirs in stored]
    layers = {e.ours[0].partition("/")[0] for e in found}
    missing = [e.theirs for e in entries if e.ours[0].partition("/")[0] in layers and e not in found]
    if missing:
        raise ModelFileError(f"{where} lacks {missing[0]!r}, a part of its head")
    return found


def stored_labels(entries: list[Entry], shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """How many classes a checkpoint's head has, None without one."""
    kernel = next((e.theirs for e in entries if e.ours == ("logits/kernel",)), None)
    return None if kernel is None or kernel not in shapes else shapes[kernel][0]


def stored_names(raw: Mapping[str, Any], classes: int) -> tuple[str, ...]:
    """Names of a head's classes, out of `config.json`; where it has none, as public tools number them."""
    found = raw.get("id2label")
    names = [found.get(str(i)) for i in range(classes)] if isinstance(found, dict) else []
    fine = len(names) == classes and all(isinstance(name, str) for name in names)
    return tuple(map(str, names)) if fine else tuple(f"LABEL_{i}" for i in range(classes))


def named_head(raw: Mapping[str, Any]) -> str | None:
    """The head that a `config.json` says it was trained for a task with, by our name; None without one.

    A head of pretraining, which guesses words, is none.
    """
    found = raw.get("architectures")
    name = found[0] if isinstance(found, list) and found and isinstance(found[0], str) else ""
    return next((head for head, end in _CLASSES.items() if head != "masked_lm" and name.endswith(end)), None)


def pooling_of(raw: Mapping[str, Any]) -> str:
    """Where the classifier of a `config.json` looks.

    Raises:
        ModelFileError: it is not known.
    """
    looks = raw.get("classifier_pooling", "cls")
    if looks not in _LOOKS_AT:
        raise ModelFileError(f"classifier_pooling must be one of {', '.join(_LOOKS_AT)}, got {str(looks)[:80]!r}")
    return _LOOKS_AT[looks]


def head_config(kind: str, head: str, labels: Sequence[str] | None, pooling: str) -> dict[str, Any]:
    """What `config.json` says of a head with classes of such names."""
    names = {} if labels is None else {str(i): label for i, label in enumerate(labels)}
    known = {"id2label": names, "label2id": {name: int(i) for i, name in names.items()}} if names else {}
    if kind == "modernbert" and head == "classification":
        known["classifier_pooling"] = next(looks for looks, ours in _LOOKS_AT.items() if ours == pooling)
    return {"architectures": [_PREFIX[kind] + _CLASSES[head]], **known}


def check_public(kind: str, head: str | None, pooling: str) -> None:
    """Refuses heads that no public layout holds.

    Raises:
        InputError: it would be lost.
    """
    if kind not in _PREFIX and head in _CLASSES:
        raise InputError(f"no public layout holds a head {head!r} on this encoder; save it as .keras")
    if head == "classification" and pooling not in (POOLERS if kind == "modernbert" else ("pooler",)):
        raise InputError(
            f"no public layout holds a classifier with pooling {pooling!r}; build it with pooling='pooler', or "
            "save it as .keras"
        )
