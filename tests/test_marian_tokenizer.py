"""Translators whose tokenizer is SentencePiece's: ids are those that the package itself cuts."""

import dataclasses
import io
import json
import random
import shutil

import pytest

import tfopt
from tfopt.data.detokenizers import HuggingFaceTokenizer
from tfopt.data.marian_tokenizer import FILES, marian_tokenizer
from tfopt.data.sentencepiece_file import parse_pieces
from tfopt.data.tokenizers import parse_tokenizer
from tfopt.decoding.weights import seq2seq_config_of
from tfopt.errors import ModelFileError
from tfopt.models import from_pretrained, save_pretrained, seq2seq

from .test_seq2seq import FOLDER

spm = pytest.importorskip("sentencepiece")
WORDS = [f"{verb} the {noun} {number} times, {name}!" for verb in ("give", "take", "send") for noun in ("book", "letter")
         for number in range(12) for name in ("Anna", "my lord", "naïve café")]  # fmt: skip
OTHERS = ["gib das Buch", "nimm den Brief", "schick Äpfel und Öl", "großes Maß", "zwölf Mal", "mein Herr"] * 20
NAMES = ["<pad>", ">>deu<<"]


def trained(lines, **settings):
    out = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=out, minloglevel=2, hard_vocab_limit=False,
        **{"vocab_size": 90, **settings},
    )  # fmt: skip
    return out.getvalue()


@pytest.fixture(scope="module")
def pieces():
    """The source's pieces as SentencePiece has them, and the vocabulary of both languages."""
    source, target = (spm.SentencePieceProcessor(model_proto=trained(lines)) for lines in (WORDS, OTHERS))
    both = [one.id_to_piece(i) for one in (source, target) for i in range(3, one.get_piece_size())]
    return source, {piece: i for i, piece in enumerate(["</s>", "<unk>", *dict.fromkeys(both), *NAMES])}


@pytest.fixture
def folder(pieces, tmp_path):
    source, vocab = pieces
    (tmp_path / FILES[0]).write_bytes(source.serialized_model_proto())
    (tmp_path / FILES[1]).write_text(json.dumps(vocab))
    return tmp_path


@pytest.mark.parametrize("text", [
    *WORDS[::7], "", " ", "  two  spaces ", "a\tb", "ﬁ ligature ½ ①", "\uff21 full width", "e\u0301 é", "a ▁ b", "\u200bzero",
    "漢字 and", "Ä", "ßa", "x" * 60, "send the anna letter, take ten",
])  # fmt: skip
def test_ids_are_those_of_sentencepiece(text, pieces, folder):
    source, vocab = pieces
    tokenizer = parse_tokenizer(marian_tokenizer(folder, len(vocab)).decode(), "a test")
    expected = [vocab.get(piece, vocab["<unk>"]) for piece in source.encode(text, out_type=str)]
    assert tokenizer.encode(text).ids == [*expected, vocab["</s>"]]


def test_languages_are_named_and_answers_joined(pieces, folder):
    _, vocab = pieces
    tokenizer = HuggingFaceTokenizer(parse_tokenizer(marian_tokenizer(folder, len(vocab)).decode(), "a test"))
    ids = tokenizer.encode_closed(">>deu<< give the book")
    assert ids[0] == vocab[">>deu<<"] and ids[1:] == tokenizer.encode_closed("give the book")
    german = spm.SentencePieceProcessor(model_proto=trained(OTHERS)).encode("schick Äpfel und Öl", out_type=str)
    assert tokenizer.tokenizer.decode([vocab[piece] for piece in german]) == "schick Äpfel und Öl"


def test_a_folder_without_a_tokenizer_json_translates(pieces, folder, tmp_path):
    _, vocab = pieces
    config = seq2seq_config_of(from_pretrained(FOLDER / "marian"))
    save_pretrained(seq2seq(dataclasses.replace(config, vocab_size=len(vocab))), tmp_path / "model")
    for name in FILES:
        shutil.copy(folder / name, tmp_path / "model" / name)
    found = tfopt.Generator.load(tmp_path / "model", runtime="eager")
    answer = found.generate("give the book", tfopt.GenerateConfig(max_tokens=5))[0]
    assert isinstance(answer.text, str) and answer.prompt_tokens > 2


def test_other_pieces_are_said(pieces, folder, caplog):
    _, vocab = pieces
    (folder / FILES[0]).write_bytes(trained(WORDS, model_type="bpe"))
    assert marian_tokenizer(folder, len(vocab)) is None and "other pieces than those of unigrams" in caplog.text


@pytest.mark.parametrize(("name", "content", "says"), [
    (FILES[0], b"\x0a\xff\xff", "no pieces of SentencePiece"),
    (FILES[0], b"", "must hold pieces of texts"),
    (FILES[1], b"[1]", "must map pieces"),
    (FILES[1], b'{"a": 0, "b": 0}', "must map pieces"),
    (FILES[1], b'{"a": 0, "b": 1}', "lacks '<unk>'"),
    (FILES[1], b"{", "vocab.json"),
])  # fmt: skip
def test_damaged_files(name, content, says, folder):
    (folder / name).write_bytes(content)
    with pytest.raises(ModelFileError, match=says):
        marian_tokenizer(folder, 10_000)


@pytest.mark.parametrize("table", [
    b"\x04\0\0\0\xff\xff\xff\xff", b"\0\0\0\0", b"\x08\0\0\0\1\0\0\0\xff\xff\xff\xff", b"\xff\xff\xff\xff",
])  # fmt: skip
def test_a_damaged_table_of_replaced_characters(table, pieces, folder):
    """It is read without looking where it ends, and a text would end the program."""
    source, vocab = pieces
    file = parse_pieces(source.serialized_model_proto(), "a test")
    file.normalizer_spec.precompiled_charsmap = table
    (folder / FILES[0]).write_bytes(file.SerializeToString())
    with pytest.raises(ModelFileError, match="damaged table|not a tokenizer"):
        marian_tokenizer(folder, len(vocab))


def test_a_damaged_byte_of_the_table_ends_in_an_error_or_in_ids(pieces, folder):
    source, vocab = pieces
    file, rng = parse_pieces(source.serialized_model_proto(), "a test"), random.Random(0)
    whole, refused = file.normalizer_spec.precompiled_charsmap, 0
    for _ in range(60):
        table = bytearray(whole)
        for _ in range(8):
            table[rng.randrange(0, 60_000)] = rng.randrange(256)
        file.normalizer_spec.precompiled_charsmap = bytes(table)
        (folder / FILES[0]).write_bytes(file.SerializeToString())
        try:
            tokenizer = parse_tokenizer(marian_tokenizer(folder, len(vocab)).decode(), "a test")
        except ModelFileError:
            refused += 1
            continue
        tokenizer.encode("".join(map(chr, range(1, 0x2FF))) + "ﬁ ½ ① \uff21 e\u0301 漢字")
    assert 0 < refused < 60


def test_a_vocabulary_that_is_too_large(pieces, folder):
    with pytest.raises(ModelFileError, match=r"pieces, the model's table 9 rows"):
        marian_tokenizer(folder, 9)
