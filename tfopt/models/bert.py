"""BERT-style encoder and classifier.

Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers", https://arxiv.org/abs/1810.04805.

Attention is written out with Dense layers and plain operations instead of `MultiHeadAttention`:
Keras 3 masks its scores by selection, an operator that LiteRT's fast path does not take, which cuts
the graph into pieces and makes an int8 encoder 1.4 times slower than the additive mask used here.
"""

import dataclasses
import json
import math
import typing
from collections.abc import Mapping
from typing import Any, Literal

from tfopt._keras import extras, keras_api
from tfopt.errors import InputError
from tfopt.models.symbolic_ops import SymbolicOps

# Added to the scores of padding: small enough that softmax gives exactly zero, large enough for float16.
_MASKED = -10_000.0
_ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu", "tanh")


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Shape of a BERT encoder; names as in the `config.json` of public checkpoints.

    Attributes:
        vocab_size: rows of the token table.
        hidden_size: width of the residual stream, a multiple of `num_attention_heads`.
        num_hidden_layers: encoder layers.
        num_attention_heads: heads of each attention.
        intermediate_size: width of the feed-forward layers.
        max_position_embeddings: longest sequence in tokens.
        type_vocab_size: rows of the segment table (inputs are one segment, row 0); 0 for none, as DistilBERT has.
        hidden_act: activation of the feed-forward layers, a Keras name, or "gelu_tanh", its approximation by tanh.
        layer_norm_eps: epsilon of the layer norms.
        hidden_dropout_prob: dropout after each block while training, in [0, 1).
        position_offset: row of the position table that the first token gets; RoBERTa begins at 2.
    """

    vocab_size: int
    hidden_size: int = 384
    num_hidden_layers: int = 6
    num_attention_heads: int = 12
    intermediate_size: int = 1536
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1
    position_offset: int = 0

    def __post_init__(self) -> None:
        for field in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
                      "intermediate_size", "max_position_embeddings"):  # fmt: skip
            if getattr(self, field) < 1:
                raise InputError(f"{field} must be 1 or more, got {getattr(self, field)}")
        if self.type_vocab_size < 0 or not 0 <= self.position_offset < self.max_position_embeddings:
            raise InputError(
                "type_vocab_size must be 0 or more and position_offset a row of the position table, got "
                f"{self.type_vocab_size} and {self.position_offset}"
            )
        if self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"hidden_size must be a multiple of num_attention_heads, got {self.hidden_size} "
                f"and {self.num_attention_heads}"
            )
        if self.hidden_act not in _ACTIVATIONS:
            raise InputError(f"hidden_act must be one of {', '.join(_ACTIVATIONS)}, got {self.hidden_act!r}")
        if not 0.0 <= self.hidden_dropout_prob < 1.0:
            raise InputError(f"hidden_dropout_prob must be in [0, 1), got {self.hidden_dropout_prob}")


Head = Literal["classification", "tokens", "masked_lm", "embedding", "span"]
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
Pooling = Literal["mean", "cls", "pooler"]


def bert(
    config: BertConfig,
    num_labels: int | None = None,
    *,
    pooling: Pooling = "mean",
    generation: str = "tf_keras",
    head: Head | None = None,
    heads: Mapping[str, int] | None = None,
) -> Any:
    """Builds a BERT encoder, or a model with a head on top of one, with fresh weights.

    The model takes ``{"input_ids", "attention_mask"}``, both int32 of shape (batch, length) with length
    at most `max_position_embeddings`; the mask is 1 on tokens and 0 on padding. With the head "span" and token
    types in the configuration it also takes "token_type_ids", 0 on the question and 1 on the context.

    Args:
        config: the shape of the encoder.
        num_labels: number of classes of the heads "classification" and "tokens".
        pooling: how one vector is made of a sequence: "mean" over the tokens, "cls", or for a classifier "pooler",
            a dense layer behind the first token as public checkpoints have it.
        generation: "tf_keras" or "keras".
        head: None for the encoder, which gives ``{"last_hidden_state"}`` of shape (batch, length, hidden_size), or
            "classification" if `num_labels` is given: logits (batch, num_labels). "tokens": logits (batch, length,
            num_labels). "masked_lm": logits (batch, length, vocab_size), from the token table. "embedding":
            ``{"sentence_embedding"}`` of shape (batch, hidden_size) and length 1. "span": ``{"start_logits",
            "end_logits"}``, each (batch, length), padding far below all others.
        heads: names and numbers of classes of several classifiers on one encoder: outputs ``{name: logits}``.

    Raises:
        InputError: an argument outside its range.

    >>> model = bert(BertConfig(100, 32, 1, 2, 64, 16), 3)
    >>> sorted(model.input), model.output.shape[-1]
    (['attention_mask', 'input_ids'], 3)
    """
    if pooling not in typing.get_args(Pooling):
        raise InputError(f"pooling must be 'mean', 'cls' or 'pooler', got {pooling!r}")
    if heads is not None:
        _check_heads(heads, head, num_labels)
    head = head or ("classification" if num_labels is not None else None)
    if pooling == "pooler" and head not in (None, "classification"):
        raise InputError(f"pooling 'pooler' is for classifiers, got head {head!r}")
    known = typing.get_args(Head)
    if head not in (None, *known):
        raise InputError(f"head must be None or one of {', '.join(known)}, got {head!r}")
    counted = head in ("classification", "tokens")
    if counted and (num_labels is None or num_labels < 2):
        raise InputError(f"num_labels must be 2 or more for head {head!r}, got {num_labels}")
    if not counted and num_labels is not None:
        raise InputError(f"num_labels={num_labels} means nothing for head {head!r}")
    builder = _Builder(config, generation)
    ids, mask, types = builder.inputs(typed=head == "span" and config.type_vocab_size > 1)
    hidden = builder.encode(ids, mask, types)
    if heads is None:
        outputs = builder.head(head, hidden, ids, mask=mask, num_labels=num_labels or 0, pooling=pooling)
    else:
        outputs = builder.several(heads, hidden, mask, pooling=pooling)
    names = {None: "bert", "classification": "bert_classifier"}
    name = "bert_heads" if heads is not None else names.get(head, f"bert_{head}")
    model = builder.model([ids, mask] + ([] if types is None else [types]), outputs, name)
    facts = {**dataclasses.asdict(config), "head": head, "pooling": pooling}
    if heads is not None:
        facts["cut"] = "it has several heads"  # as `save_pretrained` says of what no public layout holds
    extras.put(model, {extras.ENCODER: json.dumps(facts).encode()})
    return model


def _check_heads(heads: Mapping[str, int], head: Any, num_labels: Any) -> None:
    if head is not None or num_labels is not None:
        raise InputError(f"give either heads or head and num_labels, got {dict(heads)}, {head!r} and {num_labels}")
    few = {name: classes for name, classes in heads.items() if classes < 2}
    if not heads or few:
        raise InputError(f"every one of heads must have 2 classes or more, got {few or 'no heads'}")


def encoder_config(model: Any) -> tuple[BertConfig, Head | None, Pooling]:
    """Shape, head and pooling of a model that `bert` built, in this process or before it was saved.

    Raises:
        InputError: the model is something else.
    """
    content = extras.of(model).get(extras.ENCODER)
    if content is None:
        raise InputError(f"model {model.name!r} was not built by models.bert; its shape is not known")
    facts = json.loads(content)
    if "cut" in facts:
        raise InputError(
            f"model {model.name!r} was cut and no public layout holds it: {facts['cut']}; save it as .keras"
        )
    head, pooling = facts.pop("head"), facts.pop("pooling")
    return BertConfig(**facts), head, pooling


class _Builder:
    def __init__(self, config: BertConfig, generation: str) -> None:
        self._config = config
        self._keras = keras_api.keras_module(generation)
        self._layers = self._keras.layers
        self._ops = SymbolicOps(generation)

    def inputs(self, typed: bool) -> tuple[Any, Any, Any]:
        ids, mask, types = (self._layers.Input((None,), dtype="int32", name=name) for name in INPUTS)
        return ids, mask, types if typed else None

    def model(self, inputs: list[Any], outputs: Any, name: str) -> Any:
        named = dict(zip(INPUTS, inputs, strict=False))
        return self._keras.Model(named, outputs, name=name)

    def encode(self, ids: Any, mask: Any, types: Any) -> Any:
        c = self._config
        self._words = self._embedding(c.vocab_size, "word_embeddings")
        words = self._words(ids)
        x = words
        if c.type_vocab_size:
            types = self._ops.zeros_like(ids) if types is None else types
            x = x + self._embedding(c.type_vocab_size, "token_type_embeddings")(types)
        positions = self._ops.positions(ids) + c.position_offset if c.position_offset else self._ops.positions(ids)
        x = x + self._embedding(c.max_position_embeddings, "position_embeddings")(positions)
        x = extras.carrier(self._keras, self._dropout(self._norm("embeddings_norm")(x)))
        # (batch, 1, 1, length), broadcast over heads and queries
        bias = (1.0 - self._ops.cast(mask, "float32"))[:, None, None, :] * _MASKED
        for index in range(c.num_hidden_layers):
            x = self._layer(x, bias, f"layer_{index}")
        return x

    def head(self, head: Any, hidden: Any, ids: Any, mask: Any, num_labels: int, pooling: str) -> Any:
        """The outputs of the model."""
        if head is None:
            return {"last_hidden_state": hidden}
        if head == "classification":
            return self._dense(num_labels, "logits")(self._dropout(self._pooled(hidden, mask, pooling)))
        if head == "tokens":
            return self._dense(num_labels, "logits")(self._dropout(hidden))
        if head == "masked_lm":
            return self._masked_lm(hidden, ids)
        if head == "embedding":
            pooled = self._pooled(hidden, mask, pooling)
            square = self._ops.maximum(self._ops.sum(pooled * pooled, axis=1), 1e-24)
            return {"sentence_embedding": pooled * self._ops.rsqrt(square)[:, None]}
        hide = (1.0 - self._ops.cast(mask, "float32")) * _MASKED
        logits = self._dense(2, "span_logits")(hidden)
        return {
            "start_logits": self._ops.plus(logits[:, :, 0], hide),
            "end_logits": self._ops.plus(logits[:, :, 1], hide),
        }

    def several(self, heads: Mapping[str, int], hidden: Any, mask: Any, pooling: str) -> dict[str, Any]:
        """Outputs of several classifiers of one pooled vector."""
        pooled = self._dropout(self._pooled(hidden, mask, pooling))
        return {name: self._dense(classes, f"{name}_logits")(pooled) for name, classes in heads.items()}

    def _pooled(self, hidden: Any, mask: Any, pooling: str) -> Any:
        if pooling == "cls":
            return hidden[:, 0]
        if pooling == "pooler":  # DistilBERT, which has no token types, differs in this too
            c = self._config
            return self._dense(c.hidden_size, "pooler", "tanh" if c.type_vocab_size else "relu")(hidden[:, 0])
        keep = self._ops.cast(mask, "float32")[:, :, None]
        count = self._ops.maximum(self._ops.sum(keep, axis=1), 1.0)
        total = self._ops.sum(self._ops.times_mixed(hidden, keep), axis=1)
        return total / count if self._ops.output_type is None else self._ops.times_mixed(total, 1.0 / count)

    def _masked_lm(self, hidden: Any, ids: Any) -> Any:
        c = self._config
        x = self._norm("masked_lm_norm")(self._dense(c.hidden_size, "masked_lm_dense", c.hidden_act)(hidden))
        table = self._words(self._ops.count_to(c.vocab_size, ids))[0]  # see causal_lm: a tied output
        logits = self._ops.matmul(x, self._ops.transpose(table))
        # A bias as a layer that both generations have: a norm without statistics or scale.
        norm = self._layers.BatchNormalization(scale=False, epsilon=0.0, name="masked_lm_bias")
        return norm(logits, training=False)

    def _layer(self, x: Any, bias: Any, name: str) -> Any:
        c = self._config
        attended = self._dropout(self._attention(x, bias, f"{name}_attention"))
        x = self._norm(f"{name}_attention_norm")(x + attended)
        h = self._dense(c.intermediate_size, f"{name}_intermediate", c.hidden_act)(x)
        h = self._dropout(self._dense(c.hidden_size, f"{name}_output")(h))
        return self._norm(f"{name}_output_norm")(x + h)

    def _attention(self, x: Any, bias: Any, name: str) -> Any:
        c = self._config
        heads, size = c.num_attention_heads, c.hidden_size // c.num_attention_heads

        def split(part: str, permutation: tuple[int, int, int], scale: float | None = None) -> Any:
            projected = self._dense(c.hidden_size, f"{name}_{part}")(x)
            if scale is not None:  # right behind the layer, where converters fold it into the weights
                projected = projected * scale
            return self._layers.Permute(permutation)(self._layers.Reshape((-1, heads, size))(projected))

        query = split("query", (2, 1, 3), 1.0 / math.sqrt(size))
        scores = self._ops.plus(self._ops.matmul(query, split("key", (2, 3, 1))), bias)
        context = self._ops.matmul(self._layers.Softmax()(scores), split("value", (2, 1, 3)))
        merged = self._layers.Reshape((-1, c.hidden_size))(self._layers.Permute((2, 1, 3))(context))
        return self._dense(c.hidden_size, f"{name}_output")(merged)

    def _initializer(self) -> Any:
        # A new one for each layer: tf_keras gives equal values to layers that share an instance.
        return self._keras.initializers.TruncatedNormal(stddev=0.02)

    def _embedding(self, rows: int, name: str) -> Any:
        width = self._config.hidden_size
        return self._layers.Embedding(rows, width, embeddings_initializer=self._initializer(), name=name)

    def _dense(self, units: int, name: str, activation: str | None = None) -> Any:
        dtype = self._ops.output_type if "logits" in name else None
        tanh = activation == "gelu_tanh"  # no activation of this name is in both generations
        named = None if tanh else activation
        dense = self._layers.Dense(units, named, kernel_initializer=self._initializer(), name=name, dtype=dtype)
        return (lambda x: self._ops.gelu_tanh(dense(x))) if tanh else dense

    def _norm(self, name: str) -> Any:
        return self._layers.LayerNormalization(epsilon=self._config.layer_norm_eps, name=name)

    def _dropout(self, x: Any) -> Any:
        rate = self._config.hidden_dropout_prob
        return self._layers.Dropout(rate)(x) if rate else x
