"""What a causal language model is compared on where nobody gave a text: what it says itself.

Random tokens are nothing that a model was trained on: a good file of a real one looks broken on them.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tfopt._base.members import TOKENIZER
from tfopt._keras import extras
from tfopt.data.detokenizers import HuggingFaceTokenizer
from tfopt.data.tokenizers import parse_tokenizer
from tfopt.decoding.config import CausalLMConfig
from tfopt.decoding.decoder import Decoder
from tfopt.decoding.weights import config_of, is_causal_lm, is_seq2seq
from tfopt.runtime.eager_decoder import EagerDecoder
from tfopt.runtime.eager_seq2seq import EagerSeq2SeqDecoder
from tfopt.runtime.tflite_decoder import TFLiteDecoder

IDS, MASK, TARGET = "input_ids", "attention_mask", "decoder_input_ids"  # of models that generate
_MOST_ROWS, _LEAST_ROWS = 8, 2
_MOST_ANSWER = 32  # tokens of a target
_LOGITS = 1 << 25  # of all tokens, which are kept several times while a file is compared


def said_by(model: Any, length: int, seed: int = 0, rows: int | None = None) -> np.ndarray:
    """Texts that a model says by itself, drawn at its own probabilities.

    Args:
        model: a causal language model.
        length: of each.
        seed: another one gives other texts.
        rows: how many; by default 2 to 8, the fewer the longer they and the vocabulary are.

    Returns:
        Token ids of shape (texts, length), int32.
    """
    config = config_of(model)
    rows = rows or min(_MOST_ROWS, max(_LEAST_ROWS, _LOGITS // (length * config.vocab_size)))
    first = _beginning(extras.of(model), config)
    return _drawn(EagerDecoder(model, context=length), rows, length, first=first, seed=seed)


def said_by_file(path: str, rows: int, length: int) -> np.ndarray:
    """Texts that a TFLite file of a causal language model says by itself, as `said_by`; for a child process."""
    decoder = TFLiteDecoder(path)
    first = _beginning(decoder.members, decoder.config)
    return np.concatenate([_drawn(decoder, 1, length, first=first, seed=row) for row in range(rows)])


def _drawn(decoder: Decoder, rows: int, length: int, first: int | None, seed: int) -> np.ndarray:
    """Texts at the probabilities of a decoder."""
    rng = np.random.default_rng(seed)
    ids = np.zeros((rows, length), np.int32)
    ids[:, 0] = rng.integers(0, decoder.config.vocab_size, rows) if first is None else first
    with decoder.open([0] * rows) as session:
        for place in range(1, length):
            logits = session.extend(ids[:, place - 1 : place])[:, -1].astype(np.float64)
            # The largest of logits with Gumbel noise is drawn with the probabilities that they stand for.
            ids[:, place] = (logits + rng.gumbel(size=logits.shape)).argmax(-1)
    return ids


def answers_of(model: Any, sources: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Targets that an encoder-decoder says to sources, drawn at its own probabilities.

    Args:
        model: an encoder-decoder.
        sources: (texts, tokens) int32.
        mask: 1 on tokens, 0 on padding.

    Returns:
        Token ids (texts, tokens) int32, behind the token that begins them.
    """
    decoder, rng = EagerSeq2SeqDecoder(model), np.random.default_rng(0)
    length = min(_MOST_ANSWER, sources.shape[1], decoder.context)
    ids = np.full((len(sources), length), decoder.config.start_token, np.int32)
    with decoder.open([0] * len(sources)) as session:
        session.read(sources, mask)
        for place in range(1, length):
            logits = session.score(ids[:, place - 1 : place])[:, -1].astype(np.float64)
            ids[:, place] = (logits + rng.gumbel(size=logits.shape)).argmax(-1)
    return ids


def text_of(model: Any, samples: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """The tokens of samples that logits stand behind; None of a model that does not generate."""
    if is_seq2seq(model):
        return samples[TARGET]
    return samples[IDS] if is_causal_lm(model) else None


def _beginning(members: Mapping[str, bytes], config: CausalLMConfig) -> int | None:
    """The token that begins texts, or ends them where the model has one for both."""
    content = members.get(TOKENIZER)
    if content is not None:
        tokenizer = HuggingFaceTokenizer(parse_tokenizer(content.decode(), "the model's tokenizer"))
        begun = tokenizer.encode_ids("")
        if begun and 0 <= begun[0] < config.vocab_size:
            return begun[0]
    return next((end for end in config.end_tokens if 0 <= end < config.vocab_size), None)
