"""Encoders, and models with a head on top of one."""

import dataclasses
import json
import typing
from collections.abc import Mapping
from typing import Any, Literal

from tfopt._keras import extras, keras_api
from tfopt.decoding.config import read_shape
from tfopt.errors import InputError
from tfopt.models.bert import MASKED, BertConfig, BertLayers
from tfopt.models.keras_parts import bias_of
from tfopt.models.rotary_encoder import RotaryEncoderConfig, RotaryLayers

EncoderConfig = BertConfig | RotaryEncoderConfig
Head = Literal["classification", "tokens", "masked_lm", "embedding", "span"]
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
Pooling = Literal["mean", "cls", "pooler", "mean_pooler"]
_POOLERS = ("pooler", "mean_pooler")


def encoder(
    config: EncoderConfig,
    num_labels: int | None = None,
    *,
    pooling: Pooling = "mean",
    generation: str = "tf_keras",
    head: Head | None = None,
    heads: Mapping[str, int] | None = None,
) -> Any:
    """Builds an encoder, or a model with a head on top of one, with fresh weights; `models.bert` is the same.

    The model takes ``{"input_ids", "attention_mask"}``, both int32 of shape (batch, length) with length
    at most `max_position_embeddings`; the mask is 1 on tokens and 0 on padding. With the head "span" and token
    types in the configuration it also takes "token_type_ids", 0 on the question and 1 on the context.

    Args:
        config: the shape of the encoder, a `BertConfig` or a `RotaryEncoderConfig`.
        num_labels: number of classes of the heads "classification" and "tokens".
        pooling: how one vector is made of a sequence: "mean" over the tokens, "cls", or for a classifier "pooler",
            a dense layer behind the first token as public checkpoints have it, and "mean_pooler", one behind the
            mean as some of ModernBERT have it.
        generation: "tf_keras" or "keras".
        head: None for the encoder, which gives ``{"last_hidden_state"}`` of shape (batch, length, hidden_size), or
            "classification" if `num_labels` is given: logits (batch, num_labels). "tokens": logits (batch, length,
            num_labels). "masked_lm": logits (batch, length, vocab_size), from the token table. "embedding":
            ``{"sentence_embedding"}`` of shape (batch, hidden_size) and length 1. "span": ``{"start_logits",
            "end_logits"}``, each (batch, length), padding far below all others.
        heads: names and numbers of classes of several classifiers on one encoder: outputs ``{name: logits}``.

    Raises:
        InputError: an argument outside its range.

    >>> model = encoder(BertConfig(100, 32, 1, 2, 64, 16), 3)
    >>> sorted(model.input), model.output.shape[-1]
    (['attention_mask', 'input_ids'], 3)
    """
    if not isinstance(config, EncoderConfig):
        raise InputError(f"config must be a BertConfig or a RotaryEncoderConfig, got {type(config).__name__}")
    if pooling not in typing.get_args(Pooling):
        known = ", ".join(map(repr, typing.get_args(Pooling)))
        raise InputError(f"pooling must be one of {known}, got {pooling!r}")
    if heads is not None:
        _check_heads(heads, head, num_labels)
    head = head or ("classification" if num_labels is not None else None)
    if pooling in _POOLERS and head not in (None, "classification"):
        raise InputError(f"pooling {pooling!r} is for classifiers, got head {head!r}")
    if head not in (None, *typing.get_args(Head)):
        raise InputError(f"head must be None or one of {', '.join(typing.get_args(Head))}, got {head!r}")
    counted = head in ("classification", "tokens")
    if counted and (num_labels is None or num_labels < 2):
        raise InputError(f"num_labels must be 2 or more for head {head!r}, got {num_labels}")
    if not counted and num_labels is not None:
        raise InputError(f"num_labels={num_labels} means nothing for head {head!r}")
    keras, built = keras_api.keras_module(generation), _Built(config, generation, pooling=pooling)
    ids, mask, types = (keras.layers.Input((None,), dtype="int32", name=name) for name in INPUTS)
    given = [ids, mask, *([types] if head == "span" and config.type_vocab_size > 1 else [])]
    hidden = built.layers.encode(ids, mask, types if len(given) > 2 else None)
    outputs = built.head(head, hidden, ids, mask=mask, num_labels=num_labels or 0) if heads is None else (
        built.several(heads, hidden, mask)
    )  # fmt: skip
    kind = "bert" if isinstance(config, BertConfig) else "encoder"
    names = {None: kind, "classification": f"{kind}_classifier"}
    name = f"{kind}_heads" if heads is not None else names.get(head, f"{kind}_{head}")
    model = keras.Model(dict(zip(INPUTS, given, strict=False)), outputs, name=name)
    facts = {**dataclasses.asdict(config), "head": head, "pooling": pooling}
    if heads is not None:
        facts["cut"] = "it has several heads"  # as `save_pretrained` says of what no public layout holds
    if isinstance(config, BertConfig) and config.shared_layers:
        facts["cut"] = "its layers share their weights"
    extras.put(model, {extras.ENCODER: json.dumps(facts).encode()})
    return model


def _check_heads(heads: Mapping[str, int], head: Any, num_labels: Any) -> None:
    if head is not None or num_labels is not None:
        raise InputError(f"give either heads or head and num_labels, got {dict(heads)}, {head!r} and {num_labels}")
    few = {name: classes for name, classes in heads.items() if classes < 2}
    if not heads or few:
        raise InputError(f"every one of heads must have 2 classes or more, got {few or 'no heads'}")


def encoder_config(model: Any) -> tuple[EncoderConfig, Head | None, Pooling]:
    """Shape, head and pooling of a model that `encoder` built, in this process or before it was saved.

    Raises:
        InputError: the model is something else.
        ModelFileError: what was saved with it is not such a shape.
    """
    content = extras.of(model).get(extras.ENCODER)
    if content is None:
        raise InputError(f"model {model.name!r} was not built by models.encoder; its shape is not known")
    facts = json.loads(content)
    if "cut" in facts:
        raise InputError(
            f"model {model.name!r} was cut and no public layout holds it: {facts['cut']}; save it as .keras"
        )
    head, pooling = facts.pop("head"), facts.pop("pooling")
    kind: type[Any] = RotaryEncoderConfig if "network" in facts else BertConfig
    config: EncoderConfig = read_shape(kind, json.dumps(facts).encode(), "an encoder")
    return config, head, pooling


class _Built:
    """An encoder and the heads on it."""

    def __init__(self, config: EncoderConfig, generation: str, pooling: Pooling) -> None:
        self.layers: BertLayers | RotaryLayers
        self._widths: tuple[int, ...]
        if isinstance(config, BertConfig):
            self.layers, self._widths = BertLayers(config, generation), ()
        else:
            self.layers, self._widths = RotaryLayers(config, generation), config.embedding_widths
        self._keras = keras_api.keras_module(generation)
        self._ops = self.layers.ops
        self._pooling = pooling

    def head(self, head: Head | None, hidden: Any, ids: Any, mask: Any, num_labels: int) -> Any:
        """The outputs of the model."""
        layers = self.layers
        if head is None:
            return {"last_hidden_state": hidden}
        if head == "classification":
            return layers.dense(layers.dropout(self._pooled(hidden, mask)), num_labels, "logits")
        if head == "tokens":
            return layers.dense(layers.dropout(layers.before_logits(hidden)), num_labels, "logits")
        if head == "masked_lm":
            words = layers.words_of(hidden, ids)
            units = int(words.shape[-1])
            return words + bias_of(self._keras, self._ops, ids, units=units, name="masked_lm_bias")
        if head == "embedding":
            pooled = self._pooled(hidden, mask)
            for number, units in enumerate(self._widths):
                pooled = layers.dense(pooled, units, f"embedding_dense_{number}", bias=False)
            square = self._ops.maximum(self._ops.sum(pooled * pooled, axis=1), 1e-24)
            return {"sentence_embedding": pooled * self._ops.rsqrt(square)[:, None]}
        hide = (1.0 - self._ops.cast(mask, "float32")) * MASKED
        logits = layers.dense(layers.before_logits(hidden), 2, "span_logits")
        return {
            "start_logits": self._ops.plus(logits[:, :, 0], hide),
            "end_logits": self._ops.plus(logits[:, :, 1], hide),
        }

    def several(self, heads: Mapping[str, int], hidden: Any, mask: Any) -> dict[str, Any]:
        """Outputs of several classifiers of one pooled vector."""
        pooled = self.layers.dropout(self._pooled(hidden, mask))
        return {name: self.layers.dense(pooled, classes, f"{name}_logits") for name, classes in heads.items()}

    def _pooled(self, hidden: Any, mask: Any) -> Any:
        vector = hidden[:, 0] if self._pooling in ("cls", "pooler") else self._mean(hidden, mask)
        return self.layers.pooler(vector) if self._pooling in _POOLERS else vector

    def _mean(self, hidden: Any, mask: Any) -> Any:
        keep = self._ops.cast(mask, "float32")[:, :, None]
        count = self._ops.maximum(self._ops.sum(keep, axis=1), 1.0)
        total = self._ops.sum(self._ops.times_mixed(hidden, keep), axis=1)
        return total / count if self._ops.output_type is None else self._ops.times_mixed(total, 1.0 / count)


bert = encoder  # its name in recipes and notebooks
