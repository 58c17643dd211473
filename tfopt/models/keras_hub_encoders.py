"""Encoders and classifiers of texts of KerasHub, read into the encoder of this library: BERT, DistilBERT, RoBERTa.

KerasHub itself is not imported: the model that is given brings its classes.
"""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from tfopt._base.members import FACTS
from tfopt._keras import extras, keras_api
from tfopt.data.text_facts import ONLY, TextFacts
from tfopt.errors import InputError
from tfopt.models.bert import BertConfig
from tfopt.models.encoder import Head, encoder
from tfopt.models.keras_hub import byte_pairs, class_of, path_of

_TASK, _BACKBONE = "TextClassifier", "Backbone"
_ROBERTA_OFFSET = 2  # rows before the first position, as public RoBERTa has them; KerasHub leaves them out
_TRIED = ("The quick brown fox.", "Caf\u00e9 d'or, 3rd floor: it's-fine!", "\u4e2d\u6587 x")


@dataclasses.dataclass(frozen=True)
class _Family:
    """How KerasHub builds a kind of encoder.

    Attributes:
        types: rows of the segment table that ours needs; RoBERTa has one, and KerasHub none of its own.
        offset: of the positions.
        activation, eps: of its layers.
    """

    types: int
    offset: int
    activation: str
    eps: float


FAMILIES = {
    "Bert": _Family(types=2, offset=0, activation="gelu_tanh", eps=1e-12),
    "DistilBert": _Family(types=0, offset=0, activation="gelu", eps=1e-12),
    "Roberta": _Family(types=1, offset=_ROBERTA_OFFSET, activation="gelu", eps=1e-5),
}
_FIRST = (
    "token_embedding", "position_embedding", "segment_embedding", "embeddings_layer_norm", "transformer_layer_",
    "pooled_dense", "logits",
)  # fmt: skip
_LAYER = {
    "attention_query": "self_attention_layer/query", "attention_key": "self_attention_layer/key",
    "attention_value": "self_attention_layer/value", "attention_output": "self_attention_layer/attention_output",
    "attention_norm": "self_attention_layer_norm", "intermediate": "feedforward_intermediate_dense",
    "output": "feedforward_output_dense", "output_norm": "feedforward_layer_norm",
}  # fmt: skip


def is_encoder(model: Any) -> bool:
    """Whether it is an encoder, or a classifier of texts, of a family of KerasHub that is known here."""
    return _family_of(model) is not None


def as_encoder(model: Any, *, generation: str = "keras") -> Any:
    """A model of `models.encoder` with the same weights, where KerasHub built one of texts; any other as it is.

    Args:
        model: a `TextClassifier` of KerasHub, with its preprocessor's tokenizer if there is one, or a backbone.
        generation: "tf_keras" or "keras".

    Raises:
        InputError: a setting that the encoder does not know.
    """
    name = _family_of(model)
    if name is None:
        return model
    family, backbone = FAMILIES[name], getattr(model, "backbone", model)
    settings = backbone.get_config()
    config = BertConfig(
        settings["vocabulary_size"], settings["hidden_dim"], settings["num_layers"],
        num_attention_heads=settings["num_heads"], intermediate_size=settings["intermediate_dim"],
        max_position_embeddings=settings["max_sequence_length"] + family.offset,
        type_vocab_size=settings["num_segments"] if name == "Bert" else family.types,
        hidden_act=family.activation, layer_norm_eps=family.eps, hidden_dropout_prob=settings["dropout"],
        position_offset=family.offset,
    )  # fmt: skip
    is_task = class_of(model).endswith(_TASK)
    classes = _check_head(model, config) if is_task else None
    head: Head | None = "classification" if is_task else None
    made = encoder(config, classes, pooling="pooler" if is_task else "mean", generation=generation, head=head)
    _assign(made, model, family)
    _keep_for_texts(made, model, classes)
    return made


def _family_of(model: Any) -> str | None:
    name = class_of(model)
    family = name.removesuffix(_TASK).removesuffix(_BACKBONE)
    return family if family in FAMILIES and name in (family + _TASK, family + _BACKBONE) else None


def _check_head(model: Any, config: BertConfig) -> int:
    """The number of classes of a classifier."""
    settings = model.get_config()
    if settings.get("activation") not in (None, "linear"):
        raise InputError(f"a head with activation {settings['activation']!r} is not known here, which gives logits")
    if settings.get("hidden_dim") not in (None, config.hidden_size):
        raise InputError(
            f"a head of {settings['hidden_dim']} neurons is not known here, which has those of the width, "
            f"{config.hidden_size}"
        )
    return int(settings["num_classes"])


def _entries(layers: int, family: _Family, is_task: bool) -> Iterator[tuple[str, str]]:
    """Our path and theirs."""
    yield "word_embeddings/embeddings", "token_embedding/embeddings"
    yield "position_embeddings/embeddings", "position_embedding/embeddings"
    if family.types > 1:
        yield "token_type_embeddings/embeddings", "segment_embedding/embeddings"
    named = [("embeddings_norm", "embeddings_layer_norm")]
    named += [(f"layer_{i}_{a}", f"transformer_layer_{i}/{b}") for i in range(layers) for a, b in _LAYER.items()]
    named += [("pooler", "pooled_dense"), ("logits", "logits")] if is_task else []
    for ours, theirs in named:
        for part in ("gamma", "beta") if ours.endswith("_norm") else ("kernel", "bias"):
            yield f"{ours}/{part}", f"{theirs}/{part}"


def _assign(made: Any, model: Any, family: _Family) -> None:
    stored = {path_of(w, _FIRST): np.asarray(w, np.float32) for w in model.weights}
    layers = getattr(model, "backbone", model).num_layers
    ours = {w.path: w.variable for w in keras_api.weights(made)}
    if family.types == 1:  # RoBERTa has no segments, KerasHub's no table of one either
        table = ours.pop("token_type_embeddings/embeddings")
        table.assign(np.zeros(table.shape))
    for path, theirs in _entries(layers, family, is_task=class_of(model).endswith(_TASK)):
        if theirs not in stored:
            raise InputError(f"{class_of(model)} has no weight {theirs!r}: it is of a version not known here")
        value, variable = stored.pop(theirs), ours[path]
        if path == "position_embeddings/embeddings" and family.offset:
            value = np.concatenate([np.zeros((family.offset, value.shape[1]), np.float32), value])
        variable.assign(value.reshape(variable.shape))
    # The pooling of BERT belongs to its backbone, and goes where there is no head.
    more = [path for path in stored if not path.startswith("pooled_dense")]
    if more:
        raise InputError(
            f"{class_of(model)} has weights that are not known here, such as {more[0]!r}: it was changed, by "
            "low-rank adapters or quantization perhaps; merge them first"
        )


def _keep_for_texts(made: Any, model: Any, classes: int | None) -> None:
    """The tokenizer, and the numbers of the classes, which KerasHub gives no names."""
    preprocessor = getattr(model, "preprocessor", None)
    tokenizer = getattr(preprocessor, "tokenizer", None)
    content = None if tokenizer is None else _word_pieces(tokenizer) or _byte_pairs_between(tokenizer)
    if content is not None:
        extras.keep(made, extras.TOKENIZERS[0], content)
    if classes is not None:
        longest = getattr(preprocessor, "sequence_length", None)
        facts = TextFacts("classification", {ONLY: tuple(map(str, range(classes)))}, max_length=longest)
        extras.keep(made, FACTS, facts.as_json())


def _word_pieces(tokenizer: Any) -> bytes | None:
    """The `tokenizer.json` of KerasHub's word pieces; None for a tokenizer that splits in another way."""
    if not hasattr(tokenizer, "suffix_indicator"):
        return None
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = {word: number for number, word in enumerate(tokenizer.get_vocabulary())}
    unknown = tokenizer.oov_token
    made = Tokenizer(
        models.WordPiece(words, unk_token=unknown, continuing_subword_prefix=tokenizer.suffix_indicator)
    )
    lower = bool(tokenizer.lowercase)
    made.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=bool(tokenizer.strip_accents) or lower,
        lowercase=lower,
    )  # fmt: skip
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    first, last = tokenizer.cls_token, tokenizer.sep_token
    made.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", pair=f"{first} $A {last} $B:1 {last}:1",
        special_tokens=[(first, words[first]), (last, words[last])],
    )  # fmt: skip
    return _if_same(made, tokenizer)


def _byte_pairs_between(tokenizer: Any) -> bytes | None:
    """The `tokenizer.json` of RoBERTa's byte pairs between its first and last token."""
    content = byte_pairs(tokenizer, add_start=False)
    if content is None:
        return None
    from tokenizers import Tokenizer, processors

    made = Tokenizer.from_str(content.decode())
    first, last = tokenizer.start_token, tokenizer.end_token
    made.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", pair=f"{first} $A {last} {last} $B {last}",
        special_tokens=[(first, int(tokenizer.start_token_id)), (last, int(tokenizer.end_token_id))],
    )  # fmt: skip
    return _if_same(made, tokenizer)


def _if_same(made: Any, tokenizer: Any) -> bytes | None:
    """What was made, where it splits a few texts as KerasHub does."""
    for text in _TRIED:
        theirs = [int(i) for i in np.asarray(tokenizer(text)).ravel()]
        if made.encode(text, add_special_tokens=False).ids != theirs:
            return None
    return json.dumps(json.loads(made.to_str())).encode()
