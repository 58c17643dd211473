"""A vocabulary cut to a corpus: the corpus reads as before, anything else still reads, the model answers the same."""

import json

import numpy as np
import pytest
import tokenizers

import tfopt
from tfopt._keras import extras
from tfopt.compress.vocabulary import cut_vocabulary
from tfopt.data.tokenizers import encode, load_tokenizer, parse_tokenizer, train_bpe
from tfopt.errors import InputError, ModelFileError
from tfopt.models import BertConfig, bert

from .structured_models import llama
from .test_shrink import outputs, randomized

WORDS = [
    "lower",
    "lowest",
    "newer",
    "newest",
    "wide",
    "wider",
    "widest",
    "Zürich",
    "naïve",
    "café",
    "running",
    "runner",
]


def texts_of(seed, count=40):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, 5)) for _ in range(count)]


def wordpiece():
    trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"],
                                                   show_progress=False)  # fmt: skip
    found = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    found.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    found.train_from_iterator(texts_of(0), trainer)
    found.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return found


def bpe():
    return train_bpe(texts_of(0), 340)


@pytest.mark.parametrize("make", [wordpiece, bpe], ids=["WordPiece", "BPE"])
def test_the_corpus_reads_as_before_and_other_text_still_reads(make, keras, tmp_path):
    tokenizer = make()
    size = tokenizer.get_vocab_size()
    model = randomized(
        bert(
            BertConfig(size, 16, 1, num_attention_heads=2, intermediate_size=32, max_position_embeddings=64),
            3,
            generation=keras.__name__,
        )
    )
    corpus = [text for text in texts_of(1) if "run" not in text]
    found = cut_vocabulary(model, tokenizer.to_str().encode(), texts=corpus)
    smaller = parse_tokenizer(found.tokenizer.decode(), "cut")
    assert smaller.get_vocab_size() == len(found.kept) < size
    for text in corpus:
        new, old = smaller.encode(text), tokenizer.encode(text)
        assert new.tokens == old.tokens and found.kept[new.ids].tolist() == old.ids
    other = smaller.encode("running runner lowest")  # words that are gone are spelled
    assert "".join(t.removeprefix("##").strip("Ġ") for t in other.tokens[1:-1]) == "runningrunnerlowest"
    assert len(other.ids) > len(tokenizer.encode("running runner lowest").ids)

    def rows(some):
        encoded = encode(some, corpus[:4], 64)
        longest = int(encoded.lengths.max())
        ids, mask = np.zeros((4, longest), np.int32), np.zeros((4, longest), np.int32)
        at = 0
        for i, n in enumerate(encoded.lengths):
            ids[i, :n], mask[i, :n] = encoded.tokens[at : at + n], 1
            at += n
        return {"input_ids": ids, "attention_mask": mask}

    np.testing.assert_allclose(outputs(found.model, rows(smaller)), outputs(model, rows(tokenizer)), atol=1e-5)
    (tmp_path / "tokenizer.json").write_bytes(found.tokenizer)
    assert load_tokenizer(tmp_path).get_vocab_size() == len(found.kept)
    assert json.loads(extras.of(found.model)["tfopt_bert.json"])["vocab_size"] == len(found.kept)
    assert tfopt.export(found.model, tmp_path / "m.tflite", format="tflite", lengths=[16]).max_abs_error < 1e-3


def test_rare_tokens_go_too(keras):
    tokenizer = bpe()
    model = bert(
        BertConfig(
            tokenizer.get_vocab_size(),
            16,
            1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=64,
        ),
        3,
        generation=keras.__name__,
    )
    all_of_them = cut_vocabulary(model, tokenizer.to_str().encode(), texts=texts_of(1))
    often = cut_vocabulary(model, tokenizer.to_str().encode(), texts=texts_of(1), least=40)
    assert len(often.kept) < len(all_of_them.kept)


def test_what_cannot_be_cut(keras):
    tokenizer = bpe()
    content = tokenizer.to_str().encode()
    model = bert(
        BertConfig(
            tokenizer.get_vocab_size(),
            16,
            1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=64,
        ),
        3,
        generation=keras.__name__,
    )
    with pytest.raises(InputError, match="the corpus holds no texts"):
        cut_vocabulary(model, content, texts=[])
    with pytest.raises(InputError, match="generates: its output has a column for every token"):
        cut_vocabulary(llama(keras), content, texts=["x"])
    with pytest.raises(InputError, match="must be looked up in one table, once"):
        tied = bert(
            BertConfig(
                tokenizer.get_vocab_size(),
                16,
                1,
                num_attention_heads=2,
                intermediate_size=32,
                max_position_embeddings=64,
            ),
            head="masked_lm",
            generation=keras.__name__,
        )
        cut_vocabulary(tied, content, texts=["x"])
    small = bert(
        BertConfig(30, 16, 1, num_attention_heads=2, intermediate_size=32, max_position_embeddings=64),
        3,
        generation=keras.__name__,
    )
    with pytest.raises(InputError, match="they do not belong together"):
        cut_vocabulary(small, content, texts=["x"])
    unigram = tokenizers.Tokenizer(tokenizers.models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
    with pytest.raises(ModelFileError, match="a vocabulary of kind 'Unigram' cannot be cut"):
        cut_vocabulary(model, unigram.to_str().encode(), texts=["a"])
